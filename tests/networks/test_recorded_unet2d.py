"""Network `unet2d` and the discrete samplers against recordings of diffusers."""

from __future__ import annotations

import re

import pytest
import torch

from onestep.checkpoints.diffusers_folder import tensor_shapes
from onestep.networks import build_denoiser, frozen_parameters
from onestep.networks._laws import ddpm_sigmas
from onestep.sampling.ddpm import DDPM
from unet2d_folders import network_config, networks_of, recorded_kwargs

pytestmark = pytest.mark.golden
_LEVELS = {"conv+proj": ["conv", "proj"], "+qkv": ["conv", "proj", "qkv"], "+shortcut": ["conv", "proj", "qkv", "skip"]}


@pytest.fixture
def recorded(golden):
    return networks_of(golden)


@pytest.fixture
def arrays(recorded):
    return recorded.load("diffusers_unet.npz")


@pytest.fixture
def network(arrays):
    network = build_denoiser(network_config(recorded_kwargs(arrays))).eval()
    weights = {f"model.{key[3:]}": torch.from_numpy(value) for key, value in arrays.items() if key[:3] == "sd/"}
    assert list(weights) == list(network.state_dict())
    network.load_state_dict(weights, strict=True)
    return network


def _said(recorded, pattern, *, group="diffusers_unet.npz"):
    found = re.search(pattern, recorded.manifest["groups"][group]["tol"])
    assert found, f"no {pattern!r} in the words on {group}"
    return float(found[1])


def _share(found, wanted):
    wanted = torch.as_tensor(wanted).double()
    assert found.shape == wanted.shape
    return ((found.detach().double() - wanted).abs().max() / wanted.abs().max()).item()


def test_outputs_and_gradients(recorded, arrays, network):
    x, times = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["t"])
    out = network.model(x, times.float())
    assert (out - torch.from_numpy(arrays["out"])).abs().max().item() <= _said(recorded, r"abs ([\d.e-]+)")
    (out * torch.from_numpy(arrays["r"])).sum().backward()
    gradients = {f"grad/{name[6:]}": each.grad for name, each in network.named_parameters()}
    wanted = {key: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("grad/")}
    assert wanted.keys() <= gradients.keys() and wanted
    largest = max(value.abs().max().item() for value in wanted.values())
    for key, value in wanted.items():
        scale = max(value.abs().max().item(), 1e-3 * largest)  # gradients of keys' biases are rounding alone
        assert (gradients[key] - value).abs().max().item() <= _said(recorded, r"grads rel ([\d.e-]+)") * scale, key


@torch.no_grad()
def test_the_law_estimates_what_the_scheduler_does(recorded, arrays, network):
    """DDPM's image at a time is y / sqrt(1 + sigma^2)."""
    sigmas, kept = ddpm_sigmas(), torch.from_numpy(arrays["alphas_cumprod"]).double()
    assert ((1 / (1 + sigmas**2)) / kept - 1).abs().max() < 1e-5  # recorded in single precision
    levels, clean = sigmas[torch.from_numpy(arrays["t"])].reshape(-1, 1, 1, 1), torch.from_numpy(arrays["x"])
    noisy = (clean + levels * torch.from_numpy(arrays["noise"])) / (1 + levels**2).sqrt()
    assert _share(noisy, arrays["add_noise"]) < 1e-5
    z, last = torch.from_numpy(arrays["z"]), sigmas[-1]
    noise = network.model(z, torch.full((len(z),), len(sigmas) - 1.0))
    assert (noise - torch.from_numpy(arrays["eps_at_999"])).abs().max().item() <= _said(recorded, r"abs ([\d.e-]+)")
    estimate = network(z * (1 + last**2).sqrt(), last.expand(len(z)))
    assert _share(estimate, arrays["one_step_x0"]) <= _said(recorded, r"one_step_x0[^;]* rel ([\d.e-]+)")


class _OneStream:
    """The random numbers of torch's generator for all images at once, as in the recording."""

    def __init__(self, seed, rows):
        self.generator, self.rows = torch.Generator().manual_seed(seed), rows

    def normal(self, shape, *, dtype):
        return torch.randn(self.rows, *shape, generator=self.generator).to(dtype)


@pytest.mark.parametrize(("key", "options"), [("ddim10", {"variance": "none", "clip": False}), ("ddpm10_clipped", {})])
def test_samplers(recorded, arrays, network, key, options):
    times = tuple(arrays[f"{key.partition('_')[0]}_timesteps"].tolist())
    sampler, z = DDPM(steps=len(times), **options), torch.from_numpy(arrays["z"])
    assert sampler.times == times and sampler.nfe == len(times)
    random = _OneStream(int(arrays["ddpm10_seed"]), len(z))
    assert _share(sampler(network, z, None, random=random), arrays[key]) <= _said(
        recorded, r"ddim10[^;]* rel ([\d.e-]+)"
    )


def _shell(config):
    with torch.device("meta"):
        return build_denoiser(config)


def test_names_shapes_and_frozen_shares_of_the_published_network(recorded):
    wanted = recorded.json("arch_ddpm-cifar10-32.json")
    config = network_config(wanted["kwargs"])
    network = _shell(config)
    parameters = {name[6:]: list(each.shape) for name, each in network.named_parameters()}
    assert list(parameters.items()) == list(wanted["parameters"].items()) and not list(network.buffers())
    assert sum(each.numel() for each in network.parameters()) == wanted["total"]
    sizes = {name: each.numel() for name, each in network.named_parameters()}
    for start, levels in _LEVELS.items():
        (known,) = [value for key, value in wanted["levels"].items() if key.startswith(start)]
        frozen = frozen_parameters(network, levels)
        assert (len(frozen), sum(sizes[name] for name in frozen)) == (known["tensors"], known["frozen"])
    assert {f"model.{name}": shape for name, shape in tensor_shapes(config)} == {
        name: tuple(each.shape) for name, each in network.state_dict().items()
    }


@torch.no_grad()
def test_outputs_of_the_published_network_with_recipe_weights(recorded):
    arrays, salt = recorded.load("full_ddpm-cifar10-32.npz"), recorded.parameters["salt"]
    published = recorded.json("arch_ddpm-cifar10-32.json")
    network = _shell(network_config(published["kwargs"]))
    names = {name[6:]: tuple(each.shape) for name, each in network.state_dict().items()}
    weights = {f"model.{name}": torch.from_numpy(recorded.recipe(salt, name, shape)) for name, shape in names.items()}
    network.load_state_dict(weights, strict=True, assign=True)
    for key in (key for key in arrays if key.startswith("out_")):
        latent = recorded.normal(salt, f"latent:{published['name']}", arrays[key].shape).astype("float32")
        out = network.eval().model(torch.from_numpy(latent), torch.tensor([float(key.removeprefix("out_"))]))
        error = (out - torch.from_numpy(arrays[key])).abs().max().item()
        assert error <= _said(recorded, r"abs ([\d.e-]+)", group="full_*.npz")
