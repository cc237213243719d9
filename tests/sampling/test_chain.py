"""Generators of several steps: the recordings, their exact limits, and gradients through the whole chain."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from onestep.chain import chain_levels, chained, sampler_for, sampler_misfit
from onestep.networks import build_denoiser
from onestep.objectives import Batch
from onestep.objectives.d2o import D2O
from onestep.sampling import PerSeedRandom, generate
from onestep.sampling.chain import Chain
from onestep.sampling.heun import Heun
from onestep.sampling.one_step import OneStep
from tiny import tiny_network


@pytest.fixture
def studies(golden):
    """The recordings of the studies."""
    if not (golden.folder / "studies" / "manifest.json").exists():
        pytest.skip(f"{golden.folder}: these recordings hold no studies")
    return type(golden)(golden.folder / "studies")


class _Recorded:
    """Random streams that give recorded noise."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, *shape):
        assert self.noise.shape[1:] == shape
        return self.noise


def _probe(arrays, owner):
    """Return the recorded probe network in D2O's law, without its second time."""
    weights = {name: torch.from_numpy(arrays[f"{owner}/{name}"]) for name in ("W1", "b1", "a1", "W2", "b2")}

    def generator(x, sigma, condition):
        s = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        skip, out = 0.25 / ((s - 0.002) ** 2 + 0.25), 0.5 * (s - 0.002) / (s**2 + 0.25).sqrt()
        inner = torch.einsum("oi,bihw->bohw", weights["W1"], (x / (s**2 + 0.25).sqrt()).to(torch.float32))
        inner = inner + weights["b1"][:, None, None] + weights["a1"][:, None, None] * s.log() / 4
        raw = torch.einsum("oi,bihw->bohw", weights["W2"], inner.tanh()) + weights["b2"][:, None, None]
        return skip * x + out * raw

    return generator


@pytest.mark.golden
def test_the_generator_of_the_objective_and_the_sampler_are_those_of_the_recordings(studies):
    arrays, said = studies.load("d2o_instance.npz"), studies.manifest["files"]["d2o_instance.npz"]
    noise, generator = torch.from_numpy(arrays["gen_z"]), _probe(arrays, "student")
    tolerance = float(re.search(r"abs ([\d.e-]+)", said["tol"])[1])
    assert said["constants"]["steps"]
    for steps in said["constants"]["steps"]:
        middle = said["constants"]["middle"] if steps == 2 else None
        batch = Batch(images=noise, condition=None, random=_Recorded(noise), images_seen=0)
        trained = D2O(steps=steps, middle=middle).generate(generator, batch)
        sampled = Chain(steps=steps, middle=middle)(generator, noise, None)
        recorded = torch.from_numpy(arrays[f"one_time/run_G/{steps}"])
        for found in (trained, sampled.to(torch.float32)):
            assert (found - recorded).abs().max() <= tolerance * max(1.0, recorded.abs().max())


@pytest.mark.golden
def test_the_levels_are_those_of_the_recorded_stub(golden):
    arrays, middle = golden.load("distill_stub.npz"), float(golden.parameters["distill_stub"]["middle_sigma"])
    lengths = [int(key.removeprefix("run_G_steps")) for key in arrays if re.fullmatch(r"run_G_steps\d+", key)]
    assert lengths
    for steps in lengths:
        recorded = torch.from_numpy(arrays[f"run_G_steps{steps}"])
        levels = chain_levels(steps, sigma=80.0, middle=middle if steps == 2 else None)
        targets = iter([*levels[1:], 0.002])

        def stub(x, sigma, condition, *, targets=targets):
            return 0.3 * x / (1 + sigma.reshape(-1, 1, 1, 1)) + 0.01 * next(targets)

        found = chained(stub, 80 * torch.from_numpy(arrays["z"]), None, levels=levels)
        torch.testing.assert_close(found, recorded, rtol=1e-4, atol=1e-6)


@pytest.mark.golden
def test_the_levels_are_those_of_the_recorded_samplers(golden):
    arrays = golden.load("schedules.npz")
    middle = float(golden.parameters["schedules"]["two_step_middle"])
    lengths = [int(key.rpartition("_")[2]) for key in arrays if key.startswith("multi_step_pairs_")]
    assert lengths
    for steps in lengths:
        recorded = arrays[f"multi_step_pairs_{steps}"]
        np.testing.assert_allclose(chain_levels(steps, sigma=80.0), recorded[:, 0], rtol=1e-12)
        pair = arrays[f"two_step_pairs_{steps}"]
        np.testing.assert_allclose(chain_levels(2, sigma=80.0, middle=middle), pair[:, 0], rtol=1e-12)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    built = build_denoiser(tiny_network()).eval()
    with torch.no_grad():  # the last layer begins at zero
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return built


def _noise(rows=4):
    return torch.randn(rows, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_middle_of_sigma_is_one_step_to_the_bit(network):
    with torch.no_grad():
        assert torch.equal(Chain(middle=80.0)(network, _noise(), None), OneStep()(network, _noise(), None))
        assert torch.equal(Chain(steps=1)(network, _noise(), None), OneStep()(network, _noise(), None))


def test_a_middle_where_the_law_is_the_identity_returns_the_moved_noise(network):
    estimate = OneStep()(network, _noise(), None)
    noisy = 80 * _noise().double()
    found = Chain(middle=0.002)(network, _noise(), None)
    torch.testing.assert_close(found, noisy + (80 - 0.002) * (estimate - noisy) / 80, rtol=0, atol=1e-6)
    assert (found - estimate).abs().max() > 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_each_step_is_one_evaluation(steps):
    seen = []

    def generator(x, sigma, condition):
        seen.append(sigma[0].item())
        return 0.5 * x

    sampler = Chain(steps=steps)
    images = sampler(generator, _noise(), None)
    assert len(seen) == sampler.nfe == steps and seen == sorted(seen, reverse=True) and seen[0] == 80
    assert images.dtype == torch.float64


def test_a_half_precision_network_is_sampled_in_single_precision():
    class Half:
        use_fp16, forced = True, []

        def __call__(self, x, sigma, condition, *, force_fp32=False):
            self.forced.append(force_fp32)
            return x

    Chain(steps=3)(Half(), _noise(), None)
    assert Half.forced == [True] * 3


@pytest.mark.parametrize("steps", [2, 3])
def test_gradients_flow_through_the_whole_chain(steps):
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    noise = 80 * _noise().double()

    def images(w):
        return chained(lambda x, sigma, _: w * x.tanh(), noise, None, levels=chain_levels(steps, sigma=80.0))

    (slope,) = torch.autograd.grad(images(weight).square().sum(), weight)
    with torch.no_grad():
        high, low = (images(weight + shift).square().sum() for shift in (1e-6, -1e-6))
    assert slope.item() == pytest.approx(((high - low) / 2e-6).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Chain(steps=0), "steps: got 0"),
        (lambda: Chain(steps=3, middle=0.8), "middle: got 0.8 with steps 3"),
        (lambda: Chain(middle=81.0), "middle: got 81.0"),
        (lambda: Chain(middle=0.001), "middle: got 0.001"),
        (lambda: Chain(sigma=0.5), "middle: got 0.8"),
        (lambda: Chain(sigma=0.002), "sigma: got 0.002"),
        (lambda: Chain(steps=1, sigma=-1.0), "sigma: got -1.0"),
        (lambda: D2O(steps=1, middle=0.8), "middle: got 0.8 with steps 1"),
        (lambda: D2O(middle=0.8), "middle: got 0.8 with steps 1"),
        (lambda: D2O(steps=2, middle=90.0), "middle: got 90.0"),
    ],
)
def test_a_chain_that_makes_no_sense_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_sampler_of_an_objective_has_its_steps():
    assert (D2O().samples_in, D2O(steps=4).samples_in) == (1, 4)
    assert sampler_for({"name": "d2o", "sigma": 80.0}) == {"name": "one_step", "sigma": 80.0}
    two = {"name": "d2o", "sigma": 70.0, "steps": 2, "middle": 0.5, "r1_every": 4}
    assert sampler_for(two) == {"name": "chain", "steps": 2, "sigma": 70.0, "middle": 0.5}
    score = {"name": "variational_score", "loss": "diff_instruct", "sigma": 2.5, "scale": 1.0}
    assert sampler_for(score) == {"name": "one_step", "sigma": 2.5}
    assert sampler_for({"name": "edm", "p_mean": -1.2, "p_std": 1.2, "sigma_data": 0.5}) is None


@pytest.mark.parametrize(
    ("sampler", "steps", "fits"),
    [
        ({"name": "chain", "steps": 4}, 4, True),
        ({"name": "chain"}, 2, True),
        ({"name": "my_module:MyChain"}, 4, True),
        ({"name": "heun", "steps": 18}, 1, True),
        ({"name": "chain", "steps": 4}, None, True),
        ({"name": "one_step"}, 2, False),
        ({"name": "heun", "steps": 2}, 3, False),
        ({"name": "chain", "steps": 3}, 2, False),
    ],
)
def test_a_sampler_fits_a_generator_of_as_many_steps(sampler, steps, fits):
    assert (sampler_misfit(sampler, steps=steps) is None) == fits


@pytest.mark.parametrize(
    ("sampler", "sigma", "fits"),
    [
        ({"name": "one_step", "sigma": 2.5}, 2.5, True),
        ({"name": "one_step"}, 80.0, True),
        ({"name": "one_step"}, 2.5, False),
        ({"name": "one_step", "sigma": 2.5}, 80.0, False),
        ({"name": "one_step", "sigma": 2.5}, None, True),
        ({"name": "heun", "steps": 18}, 2.5, True),
    ],
)
def test_a_generator_of_one_step_is_sampled_at_its_own_noise_level(sampler, sigma, fits):
    assert (sampler_misfit(sampler, steps=1, sigma=sigma) is None) == fits


def test_a_generator_that_names_its_chain_is_sampled_by_no_other(network):
    network.sampler = {"name": "chain", "steps": 2, "sigma": 80.0}
    try:
        (made,) = generate(network, Chain(steps=2), seeds=range(2), batch=2)
        assert made.pixels.shape == (2, 16, 16, 1)
        for sampler in (OneStep(), Heun(steps=2), Chain(steps=3)):
            with pytest.raises(ValueError, match="expected chain with steps: 2"):
                next(generate(network, sampler, seeds=range(2), batch=2))
    finally:
        network.sampler = None


def test_a_generator_that_names_its_noise_level_is_sampled_at_no_other(network):
    network.sampler = {"name": "one_step", "sigma": 2.5}
    try:
        next(generate(network, OneStep(sigma=2.5), seeds=range(2), batch=2))
        with pytest.raises(ValueError, match="sigma 80, expected 2.5"):
            next(generate(network, OneStep(), seeds=range(2), batch=2))
    finally:
        network.sampler = None


def test_new_noise_between_the_steps_is_that_of_consistency_sampling():
    """Of a generator that halves its input: each estimate has new noise of the next level, one seed at a time."""
    seen, seeds = [], (3, 4)

    def halves(x, sigma, condition):
        seen.append((x, float(sigma[0])))
        return x / 2

    random = PerSeedRandom(seeds)
    noise = random.normal((1, 2, 2))
    images = Chain(steps=2, middle=0.821, noise="new")(halves, noise, None, random=random)
    again = PerSeedRandom(seeds)
    assert torch.equal(again.normal((1, 2, 2)), noise)
    fresh = again.normal((1, 2, 2), dtype=torch.float64)
    torch.testing.assert_close(images, (40 * noise.double() + 0.821 * fresh) / 2)
    assert [level for _, level in seen] == [80.0, pytest.approx(0.821)]
    alone = Chain(steps=1, noise="new")(halves, noise, None, random=again)
    torch.testing.assert_close(alone, OneStep()(halves, noise, None))
    with pytest.raises(ValueError, match="random"):
        Chain(noise="new")(halves, noise, None)
