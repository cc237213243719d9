"""EDM2's networks: layers, outputs, gradients, names and shares as recorded of the published implementation."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from onestep.checkpoints.edm_pickle import of_denoiser, read_edm_pickle
from onestep.networks import build_denoiser, frozen_parameters
from onestep.networks._magnitudes import (
    Fourier,
    UnitWeights,
    concatenated,
    normalized,
    resampled,
    silu,
    weighted_sum,
)
from onestep.sampling.guided import Guided
from onestep.sampling.heun import Heun
from onestep.sampling.one_step import OneStep
from recorded_edm2 import network_of, networks_of, own_name, recipe, tensors, tolerance

pytestmark = pytest.mark.golden

_NETS = ("edm2_net_cond.npz", "edm2_net_uncond.npz")
_ARCHITECTURES = ("img64-s", "img512-xs", "img512-m", "img512-xxl")
# Of conv and proj, then with qkv, then with skip; in per cent.
_SHARES = {"img64-s": (83.9, 91.4, 94.8)}
_GUIDED = "heun5_guided_1p7"
_ABSOLUTE, _SAMPLERS, _GRADIENTS = r"^abs ([\d.e-]+)", r"samplers abs ([\d.e-]+)", r"grads rel ([\d.e-]+)"


@pytest.fixture
def recorded(golden):
    return networks_of(golden)


def assert_near(found, wanted, *, within):
    assert found.shape == wanted.shape
    assert (found.detach().double() - wanted.double()).abs().max().item() <= within


@torch.no_grad()
def test_layers(recorded):
    arrays = tensors(recorded.load("edm2_primitives.npz"))
    x, b, x2 = arrays["x"], arrays["b"], arrays["x2"]
    layers = {"conv": UnitWeights(6, 7, kernel=(3, 3)), "linear": UnitWeights(6, 7)}
    for name, layer in layers.items():
        layer.load_state_dict({"weight": arrays[f"{name}_weight"]})
    fourier = Fourier(len(arrays["fourier_freqs"]))
    fourier.load_state_dict({"freqs": arrays["fourier_freqs"], "phases": arrays["fourier_phases"]})
    gain = float(recorded.said("edm2_primitives.npz", r"gain ([\d.]+)\)"))
    found = {
        "normalize": normalized(x, dim=[1, 2, 3]),
        "normalize_dim1": normalized(x, dim=1),
        "normalize_vector": normalized(x.flatten(1), dim=1),
        "mp_silu": silu(x),
        "mp_sum_03": weighted_sum(x, x2, t=0.3),
        "mp_sum_05": weighted_sum(x, x2, t=0.5),
        "mp_cat_05": concatenated(x, b, t=0.5),
        "mp_cat_03": concatenated(x, b, t=0.3),
        "resample_up": resampled(x, mode="up", taps=(1, 1)),
        "resample_up_1331": resampled(x, mode="up", taps=(1, 3, 3, 1)),
        "resample_down": resampled(x, mode="down", taps=(1, 1)),
        "resample_down_1331": resampled(x, mode="down", taps=(1, 3, 3, 1)),
        "fourier": fourier(arrays["c_noise"]),
        "conv": layers["conv"](x),
        "conv_gain": layers["conv"](x, gain=gain),
        "linear": layers["linear"](x[:, :, 0, 0]),
    }
    layers["conv"].after_step()
    found["conv_weight_forced"] = layers["conv"].weight
    for name, value in found.items():
        assert_near(value, arrays[name], within=tolerance(recorded, "edm2_primitives.npz", _ABSOLUTE))


@pytest.mark.parametrize("name", _NETS)
def test_outputs_and_gradients(recorded, name):
    arrays = recorded.load(name)
    known, network = tensors(arrays), network_of(arrays)
    x, sigma, labels = known["x_noisy"].requires_grad_(), known["sigma"], known.get("labels")
    out, within = network(x, sigma, labels), tolerance(recorded, name, _ABSOLUTE)
    assert_near(out, known["out"], within=within)
    (out * known["r"]).sum().backward()
    share = tolerance(recorded, name, _GRADIENTS)
    assert_near(x.grad, known["grad_x"], within=share * known["grad_x"].abs().max())
    gradients = {own_name(key): each for key, each in tensors(arrays, "grad/").items()}
    parameters = dict(network.named_parameters())
    assert gradients.keys() - {None} == parameters.keys()
    for key, parameter in parameters.items():
        assert_near(parameter.grad, gradients[key], within=share * gradients[key].abs().max())
    with torch.no_grad():
        scale = (network.sigma_data**2 + sigma**2).rsqrt().reshape(-1, 1, 1, 1)
        assert_near(network.model(scale * x, sigma.log() / 4, labels), known["raw"], within=within)
        assert_near(OneStep()(network, known["z"], labels), known["one_step"], within=within)
        if "out_nolabel" in known:
            assert_near(network(x, sigma), known["out_nolabel"], within=within)


@pytest.mark.parametrize("name", _NETS)
def test_samplers(recorded, name):
    arrays = recorded.load(name)
    known, network = tensors(arrays), network_of(arrays)
    for key, steps in (("heun18", 18), ("heun5_f64", 5)):
        found = Heun(steps=steps)(network, known["z"], known.get("labels"))
        assert_near(found, known[key], within=tolerance(recorded, name, _SAMPLERS))


def test_autoguidance(recorded):
    name = "edm2_net_cond.npz"
    arrays = recorded.load(name)
    known, weak = tensors(arrays), network_of(arrays, owner="guide_")
    weight = float(re.search(r"guidance ([\d.]+) with", recorded.manifest["groups"][name]["outputs"][_GUIDED])[1])
    sampler = Guided(weight=weight, guide="weak", steps=5).with_guide(weak)
    found = sampler(network_of(arrays), known["z"], known["labels"])
    key = next(key for key in known if key.startswith("heun5_guided"))
    assert_near(found, known[key], within=tolerance(recorded, name, _SAMPLERS))


@pytest.mark.parametrize("name", _NETS)
@torch.no_grad()
def test_the_published_loss_with_its_own_estimate_of_it(recorded, name):
    """Its estimate, of the same layers, is not part of a network here."""
    arrays = recorded.load(name)
    known, network, state = tensors(arrays), network_of(arrays), tensors(arrays, "sd/")
    fourier, linear = Fourier(len(state["logvar_fourier.freqs"])), UnitWeights(len(state["logvar_fourier.freqs"]), 1)
    for layer, prefix in ((fourier, "logvar_fourier."), (linear, "logvar_linear.")):
        layer.load_state_dict({key.removeprefix(prefix): each for key, each in state.items() if key.startswith(prefix)})
    torch.manual_seed(int(arrays["loss_seed"]))
    images = 0.5 * known["x"]
    sigma = (torch.randn(len(images), 1, 1, 1) * 1.0 - 0.4).exp()
    out = network(images + torch.randn_like(images) * sigma, sigma, known.get("labels"))
    estimate = linear(fourier(sigma.flatten().log() / 4)).reshape(-1, 1, 1, 1)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    loss = weight / estimate.exp() * (out - images) ** 2 + estimate
    assert_near(loss, known["loss"], within=tolerance(recorded, name, _ABSOLUTE) * known["loss"].abs().max())


@pytest.mark.parametrize("name", _NETS)
def test_weights_after_a_step_are_those_of_unit_norm(recorded, name):
    arrays = recorded.load(name)
    network = network_of(arrays)
    for part in network.modules():
        if hasattr(part, "after_step"):
            part.after_step()
    state = network.state_dict()
    forced = {own_name(key): each for key, each in tensors(arrays, "forced/").items()}
    assert forced
    for key, weight in forced.items():
        assert_near(state[key], weight, within=tolerance(recorded, "edm2_primitives.npz", _ABSOLUTE))


@pytest.mark.parametrize("size", _ARCHITECTURES)
def test_names_shapes_and_frozen_shares(recorded, size):
    known = recorded.json(f"arch_edm2-{size}.json")
    with torch.device("meta"):
        network = build_denoiser({"name": "edm2", **known["kwargs"]})
    expected = {own_name(name): tuple(shape) for name, shape in known["parameters"].items()}
    expected.pop(None)  # the estimate of the loss
    assert {name: tuple(each.shape) for name, each in network.named_parameters()} == expected
    buffers = {own_name(name): tuple(shape) for name, shape in known["buffers"].items()}
    buffers.pop(None)
    assert {name: tuple(each.shape) for name, each in network.named_buffers()} == buffers
    total, sizes = known["total"], {name: each.numel() for name, each in network.named_parameters()}
    for levels, share in zip((2, 3, 4), _SHARES.get(size, ()), strict=False):
        frozen = frozen_parameters(network, ["conv", "proj", "qkv", "skip"][:levels])
        assert 100 * sum(sizes[name] for name in frozen) / total == pytest.approx(share, abs=0.05)


def test_a_published_pickle(recorded):
    name = "edm2_network_snapshot.pkl"
    recorded.manifest["files"][name]  # the file must be listed
    raw = read_edm_pickle(recorded.folder / name)
    for key, tensor in raw.state_dict.items():
        assert tensor.dtype == torch.float16
        wanted = recipe(recorded, key, tuple(tensor.shape)).astype(np.float16)
        assert np.array_equal(tensor.numpy(), wanted), key
    checkpoint = of_denoiser(raw)
    network = build_denoiser(checkpoint.config).eval()
    network.load_state_dict(checkpoint.state_dict, strict=True)
    same = build_denoiser(checkpoint.config).eval()
    same.load_state_dict(raw.state_dict, strict=True)
    x = torch.randn(2, network.img_channels, network.img_resolution, network.img_resolution)
    assert torch.equal(network(x, 1.0), same(x, 1.0))


@pytest.mark.full_size
@torch.no_grad()
def test_outputs_at_full_size(recorded):
    arrays = recorded.load("full_edm2-img512-xs.npz")
    config = recorded.json(f"arch_{arrays['name']}.json")["kwargs"]
    with torch.device("meta"):
        network = build_denoiser({"name": "edm2", **config}).eval()
    shapes = {f"unet.{name.removeprefix('model.')}": tuple(each.shape) for name, each in network.state_dict().items()}
    weights = {name: torch.from_numpy(recipe(recorded, name, shape)) for name, shape in shapes.items()}
    network.load_state_dict(weights, strict=True, assign=True)
    latent = recorded.normal(recorded.parameters["salt"], f"latent:{arrays['name']}", arrays["out_sigma80"].shape)
    labels = torch.eye(network.label_dim)[[int(arrays["label"])]]
    for level in (80.0, 1.0):
        x = torch.from_numpy(latent.astype(np.float32)) * level
        assert_near(network(x, level, labels), torch.from_numpy(arrays[f"out_sigma{level:g}"]), within=5e-5)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="channel_mult: got 4 levels for images of 28 pixels"):
        build_denoiser({"name": "edm2", "img_resolution": 28, "img_channels": 3})
