"""Codec `kl` against recordings of diffusers' AutoencoderKL: both directions, both scalings, the gradient."""

from __future__ import annotations

import re

import pytest
import torch

from autoencoder_folders import folder_of, kl
from onestep.autoencoders._kl_network import KLNetwork
from onestep.autoencoders.kl import sizes_of
from onestep.checkpoints.autoencoder_folder import autoencoder_config, autoencoder_shapes
from unet2d_folders import networks_of, recorded_kwargs

pytestmark = pytest.mark.golden


@pytest.fixture
def recorded(golden):
    return networks_of(golden)


@pytest.fixture
def arrays(recorded):
    return recorded.load("autoencoder_kl.npz")


@pytest.fixture
def tolerance(recorded):
    return float(re.search(r"abs ([\d.e-]+)", recorded.manifest["groups"]["autoencoder_kl.npz"]["tol"])[1])


@pytest.fixture
def pixel_share(recorded):
    """Most of the values of pixels that may differ, by one."""
    found = re.search(r"by 1 on <([\d.]+) %", recorded.manifest["groups"]["autoencoder_kl.npz"]["tol"])
    return float(found[1]) / 100


@pytest.fixture
def folder(arrays, tmp_path):
    weights = {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key[:3] == "sd/"}
    return folder_of(tmp_path / "vae", weights, recorded_kwargs(arrays))


def _apart(found, wanted, tolerance):
    wanted = torch.from_numpy(wanted)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    return (found - wanted).abs().max().item() <= tolerance * max(1.0, wanted.abs().max().item())


@torch.no_grad()
def test_the_moments_of_the_latents(arrays, folder, tolerance):
    network = kl(folder, latents="stable_diffusion").network
    mean, deviation = network.moments(torch.from_numpy(arrays["x"])).chunk(2, dim=1)
    assert _apart(mean, arrays["mean"], tolerance) and _apart(mean, arrays["mode"], tolerance)
    assert _apart(deviation, arrays["std"], tolerance) and _apart(2 * deviation.log(), arrays["logvar"], tolerance)


def test_a_draw_of_the_posterior(arrays, folder, tolerance):
    codec = kl(folder, latents="stable_diffusion", scaling=1.0)
    moments = torch.cat([torch.from_numpy(arrays[key]) for key in ("mean", "std")], dim=1)
    generator = torch.Generator().manual_seed(int(arrays["sample_seed"]))
    normal = torch.randn(arrays["mean"].shape, generator=generator)
    assert _apart(codec.drawn(moments, normal), arrays["sample"], tolerance)
    assert torch.equal(codec.drawn(moments, None), moments[:, :4])


def test_decoded_with_a_gradient(arrays, folder, tolerance):
    for again in (False, True):
        codec = kl(folder, latents="stable_diffusion", scaling=1.0, rows=1)
        for part in codec.network.modules():
            if hasattr(part, "recompute"):
                part.recompute = again
        z = torch.from_numpy(arrays["z"]).requires_grad_()
        decoded = codec.pictures(z)
        (decoded * torch.from_numpy(arrays["r"])).sum().backward()
        assert _apart(decoded.detach(), arrays["decoded"], tolerance)
        assert _apart(z.grad, arrays["decode_grad_z"], tolerance)


@pytest.mark.parametrize("key", ["dit", "edm2"])
def test_pixels(arrays, folder, pixel_share, key):
    if key == "dit":
        codec = kl(folder, latents="stable_diffusion", scaling=0.18215)
    else:  # without a scaling: means of 0 and deviations of 0.5
        codec = kl(folder, latents="edm2", means=(0.0,) * 4, deviations=(0.5,) * 4)
    found = codec.decode(torch.from_numpy(arrays["z"]).double()).int()
    difference = (found - torch.from_numpy(arrays[f"uint8_as_{key}"]).int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < pixel_share


def test_names_and_shapes_of_the_published_ones(recorded, tmp_path):
    published = recorded.json("arch_sd-vae-ft.json")
    config = autoencoder_config(folder_of(tmp_path / "vae", {}, published["kwargs"]) / "config.json")
    wanted = {name: tuple(shape) for name, shape in published["parameters"].items()}
    assert dict(autoencoder_shapes(config)) == wanted
    with torch.device("meta"):
        network = KLNetwork(sizes_of(config))
    assert {name: tuple(each.shape) for name, each in network.named_parameters()} == wanted
    assert sum(each.numel() for each in network.parameters()) == published["total"]
    assert config["scaling_factor"] == 0.18215
