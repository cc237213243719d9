"""The samplers on DDPM's discrete times with a denoiser whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from onestep.networks._laws import ddpm_sigmas
from onestep.sampling import PerSeedRandom
from onestep.sampling.ddpm import DDPM

_SPREAD = 0.5


def _ideal(x, sigma, condition):
    """The best denoiser of normal data of standard deviation 0.5."""
    return (_SPREAD**2 / (_SPREAD**2 + sigma**2)).reshape(-1, 1, 1, 1) * x


def _noise(rows):
    return torch.randn(rows, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variance", ["large", "small"])
def test_added_noise_keeps_the_distribution(variance):
    images = DDPM(variance=variance, clip=False, steps=250)(_ideal, _noise(16), None, random=PerSeedRandom(range(16)))
    assert images.dtype == torch.float64
    # The two variances are bounds: of data of unit variance, and of a single image (arXiv:2006.11239, section 3.2).
    assert images.std().item() == pytest.approx(_SPREAD, rel=0.08)


def test_without_noise_it_follows_the_flow_to_the_data():
    noise, highest = _noise(2).double(), float(ddpm_sigmas()[-1])
    exact = noise * math.sqrt(1 + highest**2) * _SPREAD / math.sqrt(highest**2 + _SPREAD**2)
    errors = []
    for steps in (25, 100, 1000):
        images = DDPM(variance="none", clip=False, steps=steps, spacing="linspace")(_ideal, noise, None)
        errors.append((images - exact).abs().max().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.02


def test_clipped_estimates_stay_in_range():
    far = lambda x, sigma, condition: torch.full_like(x, 3.0)  # noqa: E731
    assert DDPM(variance="none", steps=4)(far, _noise(1), None).max() == 1
    assert DDPM(variance="none", steps=4, clip=False)(far, _noise(1), None).max() == 3


@pytest.mark.parametrize("steps", [1, 3, 50, 1000])
def test_the_times_of_each_number_of_steps_end_at_zero(steps):
    for spacing in ("leading", "linspace"):
        sampler = DDPM(steps=steps, spacing=spacing)
        assert len(set(sampler.times)) == sampler.nfe == steps and sampler.times[-1] == 0
        assert list(sampler.times) == sorted(sampler.times, reverse=True) and max(sampler.times) < 1000


def test_refusals():
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"^steps: got {steps}"):
            DDPM(steps=steps)
    with pytest.raises(ValueError, match="^random: "):
        DDPM(steps=2)(_ideal, _noise(1), None)
