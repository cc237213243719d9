"""Samplers on denoisers whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from onestep.sampling import PerSeedRandom
from onestep.sampling.chain import Chain
from onestep.sampling.heun import Heun
from onestep.sampling.one_step import OneStep

_SPREAD = 0.5


def _ideal(x, sigma, labels):
    """The best denoiser of normal data of standard deviation 0.5 around the label."""
    mean = 0.0 if labels is None else labels[:, :1, None, None]
    weight = (_SPREAD**2 / (_SPREAD**2 + sigma**2)).reshape(-1, 1, 1, 1)
    return mean + weight * (x - mean)


class _Counting:
    """A denoiser that counts its evaluations."""

    def __init__(self):
        self.count = 0

    def __call__(self, x, sigma, labels):
        self.count += 1
        assert sigma.shape == (len(x),)
        return _ideal(x, sigma, labels)


def _noise(rows=4):
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_heun_follows_the_flow_to_the_data():
    noise, sigma_max = _noise(), 80.0
    exact = noise * sigma_max * _SPREAD / math.sqrt(sigma_max**2 + _SPREAD**2)
    errors = [(Heun(steps=steps)(_ideal, noise, None) - exact).abs().max().item() for steps in (9, 18, 36)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.03


def test_churn_keeps_the_distribution():
    noise, random = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)), PerSeedRandom(range(64))
    sampler = Heun(steps=36, churn=40.0, churn_min=0.05, churn_max=50.0)
    churned = sampler(_ideal, noise, None, random=random)
    assert (churned - Heun(steps=36)(_ideal, noise, None)).abs().max() > 0.5
    assert churned.std().item() == pytest.approx(_SPREAD, rel=0.06)


def test_a_step_outside_the_churned_range_draws_too():
    still = Heun(steps=4, churn=1.0, churn_min=1e3)
    used, fresh = PerSeedRandom([5]), PerSeedRandom([5])
    assert torch.equal(still(_ideal, _noise(1), None, random=used), Heun(steps=4)(_ideal, _noise(1), None))
    for _ in range(4):
        fresh.normal((1, 8, 8), dtype=torch.float64)
    assert torch.equal(used.normal((3,)), fresh.normal((3,)))


@pytest.mark.parametrize("sampler", [OneStep(), Heun(steps=5), Chain(steps=3)])
def test_a_sampler_says_how_often_it_evaluates(sampler):
    generator = _Counting()
    sampler(generator, _noise(), None)
    assert generator.count == sampler.nfe


@pytest.mark.parametrize("sampler", [OneStep(), Heun(steps=18), Chain()])
def test_a_sampler_passes_labels_on_and_keeps_no_graph(sampler):
    labels = torch.full((4, 1), 3.0, requires_grad=True)
    images = sampler(_ideal, _noise(), labels)
    assert images.dtype == torch.float64 and not images.requires_grad
    assert images.mean().item() == pytest.approx(3.0, abs=0.2)


def test_heun_stays_within_what_the_network_takes():
    class Limited(_Counting):
        sigma_min, sigma_max = 0.02, 10.0
        seen: list = []

        def __call__(self, x, sigma, labels):
            self.seen.append(sigma[0].item())
            return super().__call__(x, sigma, labels)

    Heun(steps=4)(Limited(), _noise(), None)
    assert max(Limited.seen) == pytest.approx(10.0)
    assert min(Limited.seen) == pytest.approx(0.02)


def test_one_step_asks_a_half_precision_network_for_single_precision():
    class Half(_Counting):
        use_fp16, forced = True, None

        def __call__(self, x, sigma, labels, *, force_fp32=False):
            self.forced = force_fp32
            return super().__call__(x, sigma, labels)

    network = Half()
    OneStep()(network, _noise(), None)
    assert network.forced is True
    Heun(steps=2)(network, _noise(), None)
    assert network.forced is False


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OneStep(sigma=0.0), "sigma: got 0.0"),
        (lambda: Heun(steps=1), "steps: got 1"),
        (lambda: Heun(steps=4, sigma_min=2.0, sigma_max=1.0), "sigma_min, sigma_max: got 2.0, 1.0"),
        (lambda: Heun(steps=4, rho=0.0), "rho and churn: got 0.0 and 0.0"),
        (lambda: Heun(steps=4, churn=-1.0), "rho and churn: got 7.0 and -1.0"),
        (lambda: Heun(steps=4, churn=1.0)(_ideal, _noise(), None), "random: got None"),
    ],
)
def test_a_sampler_that_makes_no_sense_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
