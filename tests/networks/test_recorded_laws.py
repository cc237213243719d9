"""Laws `ddpm` and `flow` against recordings of DiT's discrete diffusion and of SiT's linear path."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from dit_files import condition_of, recorded_dit
from onestep.networks import Preconditioned
from onestep.networks._laws import ddpm_sigmas, ddpm_time
from onestep.sampling.ddpm import DDPM
from unet2d_folders import networks_of

pytestmark = pytest.mark.golden
_GROUP = "dit_diffusion.npz"


@pytest.fixture
def recorded(golden):
    return networks_of(golden)


@pytest.fixture
def arrays(recorded):
    return recorded.load(_GROUP)


@pytest.fixture
def denoiser(recorded):
    return recorded_dit(recorded.load("dit_net.npz"), law="ddpm")


def _tolerance(recorded, pattern):
    return float(re.search(pattern, recorded.manifest["groups"][_GROUP]["tol"])[1])


def _share(found, wanted):
    wanted = torch.from_numpy(wanted).double()
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


def test_the_levels_of_the_thousand_times(recorded, arrays):
    sigmas, kept = ddpm_sigmas(), torch.from_numpy(arrays["alphas_cumprod"])
    assert ((1 / (1 + sigmas**2)) / kept - 1).abs().max().item() <= _tolerance(recorded, r"tables rel ([\d.e-]+)")
    assert torch.equal(ddpm_time(sigmas.float()), torch.arange(len(kept), dtype=torch.float32))
    between = ddpm_time((sigmas[100:200] * sigmas[101:201]).sqrt())
    assert (between - torch.arange(100.5, 200)).abs().max() < 1e-3
    for steps in (10, 250):
        assert DDPM(steps=steps, spacing="linspace").times[::-1] == tuple(arrays[f"timesteps_{steps}"].tolist())
    every = {step * 40 for step in range(25)}
    assert set(DDPM(steps=25).times) == every == set(arrays["timesteps_ddim25"].tolist())


@torch.no_grad()
def test_estimates_of_clean_images(recorded, arrays, denoiser):
    """DiT's image at a time is y / sqrt(1 + sigma^2)."""
    tolerance = _tolerance(recorded, r"p_pred_xstart rel ([\d.e-]+)")
    levels = ddpm_sigmas()[torch.from_numpy(arrays["t_index"])]
    scales = (1 + levels**2).sqrt().reshape(-1, 1, 1, 1)
    clean, noise = torch.from_numpy(arrays["x0"]).double(), torch.from_numpy(arrays["noise"]).double()
    assert _share((clean + levels.reshape(-1, 1, 1, 1) * noise) / scales, arrays["q_sample"]) <= 1e-6
    condition = condition_of(arrays["y"], denoiser)
    assert _share(denoiser(clean * scales, levels, condition), arrays["p_pred_xstart"]) <= tolerance
    z, last = torch.from_numpy(arrays["z"]).double(), ddpm_sigmas()[-1]
    one_step = denoiser(z * (1 + last**2).sqrt(), last.expand(len(z)), condition)
    assert _share(one_step, arrays["one_step_x0"]) <= tolerance


@torch.no_grad()
def test_deterministic_samples(recorded, arrays, denoiser):
    sampler = DDPM(steps=len(arrays["timesteps_10"]), spacing="linspace", variance="none", clip=False)
    images = sampler(denoiser, torch.from_numpy(arrays["z"]), condition_of(arrays["y"], denoiser))
    assert _share(images, arrays["ddim10"]) <= _tolerance(recorded, r"loops rel ([\d.e-]+)")


class _Velocities(nn.Module):
    """A network whose output is recorded; `seen` are image and time that the law gives it."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, x, noise, condition):
        self.seen = x, noise
        return self.velocity


def test_velocities_of_a_linear_path(recorded):
    arrays = recorded.load("sit_net.npz")
    inner = (arrays["t"] > 0) & (arrays["t"] < 1)
    times, x = (torch.from_numpy(arrays[key][inner]).double() for key in ("t", "x"))
    network = _Velocities(torch.from_numpy(arrays["velocity"][inner]))
    size = x.shape[-1]
    law = Preconditioned(network, preconditioning="flow", img_resolution=size, img_channels=x.shape[1])
    estimate = law(x / times.reshape(-1, 1, 1, 1), (1 - times) / times)
    assert _share(estimate, arrays["x1_from_velocity"][inner]) <= 2e-5
    assert np.allclose(network.seen[1].numpy(), times.numpy(), rtol=1e-6)
    assert np.allclose(network.seen[0].numpy(), x.numpy(), rtol=1e-5, atol=1e-6)
    # From pure noise, in one step: the level 999 is the time 0.001.
    network.velocity = torch.from_numpy(arrays["velocity"])
    one_step = law(999 * torch.from_numpy(arrays["x"]), torch.full((len(arrays["x"]),), 999.0))
    assert _share(one_step, arrays["x"] + arrays["velocity"]) < 2e-3


def test_samplers_stay_in_the_range_of_the_law(denoiser):
    sigmas = ddpm_sigmas()
    assert denoiser.sigma_min == pytest.approx(float(sigmas[0]), rel=1e-6)
    assert denoiser.sigma_max == pytest.approx(float(sigmas[-1]), rel=1e-6)
    assert ddpm_time(torch.tensor([1e-4, 1e4])).tolist() == [0, len(sigmas) - 1]
