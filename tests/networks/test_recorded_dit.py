"""Network `dit` against recordings of DiT and SiT."""

from __future__ import annotations

import re

import pytest
import torch

from dit_files import condition_of, config_of, recorded_dit
from onestep.checkpoints.dit_weights import position_table
from onestep.networks import build_denoiser, frozen_parameters
from onestep.networks._laws import ddpm_sigmas
from onestep.networks.dit import time_angles
from unet2d_folders import networks_of

pytestmark = pytest.mark.golden
_SIZES = {
    "dit-s-4-256": {"hidden_size": 384, "depth": 12, "num_heads": 6, "patch_size": 4},
    "dit-xl-2-256": {},
}
_LEVELS = {"proj+mlp": "F1", "proj+mlp+qkv": "F2", "proj+mlp+qkv+adaLN.weight": "F3"}
_LAWS = {"dit_net.npz": "ddpm", "sit_net.npz": "flow"}


@pytest.fixture
def recorded(golden):
    return networks_of(golden)


def _said(recorded, group, pattern=r"abs ([\d.e-]+)"):
    found = re.search(pattern, recorded.manifest["groups"][group]["tol"])
    assert found, f"no {pattern!r} in the words on {group}"
    return float(found[1])


def _error(found, wanted):
    wanted = torch.as_tensor(wanted)
    assert found.shape == wanted.shape
    return (found.detach() - wanted).abs().max().item()


def _raw(network, arrays, prefix=""):
    """Run the network itself on recorded images, times and classes."""
    x, time, classes = (torch.from_numpy(arrays[f"{prefix}{key}"]) for key in ("x", "t", "y"))
    return network.model(x, time, condition_of(classes, network))


@pytest.mark.parametrize("group", _LAWS)
def test_outputs_and_gradients(recorded, group):
    arrays = recorded.load(group)
    network = recorded_dit(arrays, law=_LAWS[group])
    seen = {}
    network.model.blocks[0].register_forward_hook(lambda _, given, result: seen.update(tokens=given[0], block0=result))
    out = _raw(network, arrays)
    channels = arrays["x"].shape[1]
    name = "out" if "out" in arrays else "velocity"
    assert _error(out, arrays[name][:, :channels]) <= _said(recorded, group)
    if "tokens" in arrays:
        assert _error(seen["tokens"], arrays["tokens"]) <= _said(recorded, group)
        assert _error(seen["block0"], arrays["block0_out"]) <= _said(recorded, group)
        times, wanted = torch.from_numpy(arrays["t"]), torch.from_numpy(arrays["timestep_embedding"])
        rounding = torch.finfo(torch.float32).eps * times[:, None]  # of a frequency, by the machine's exp
        assert ((time_angles(times) - wanted).abs() <= _said(recorded, group) + rounding).all()
    if out.shape[1] < arrays["r"].shape[1]:  # recorded gradients are of the variances, too
        network.model.channels = arrays["r"].shape[1]
        out = _raw(network, arrays)
        assert _error(out, arrays[name]) <= _said(recorded, group)
    (out * torch.from_numpy(arrays["r"])).sum().backward()
    gradients = {f"grad/{name[6:]}": each.grad for name, each in network.named_parameters()}
    wanted = {key: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("grad/")}
    assert wanted and wanted.keys() <= gradients.keys() | {"grad/pos_embed"}
    largest = max(value.abs().max().item() for value in wanted.values())
    for key in wanted.keys() & gradients.keys():
        scale = max(wanted[key].abs().max().item(), 1e-3 * largest)
        assert _error(gradients[key], wanted[key]) <= _said(recorded, group, r"grads rel ([\d.e-]+)") * scale, key


@torch.no_grad()
def test_without_variances_and_without_a_row_for_no_class(recorded):
    arrays = recorded.load("dit_net_plain.npz")
    network = recorded_dit(arrays, law="ddpm")
    assert _error(_raw(network, arrays), arrays["out"]) <= _said(recorded, "dit_net_plain.npz")


@torch.no_grad()
@pytest.mark.parametrize("group", _LAWS)
def test_published_guidance(recorded, group):
    """Of the first half of the rows, in pairs of the same image with its class and without one."""
    arrays = recorded.load(group)
    network = recorded_dit(arrays, law=_LAWS[group])
    x, time, classes = (torch.from_numpy(arrays[f"cfg_{key}"]) for key in ("x", "t", "y"))
    half, strength = len(x) // 2, float(arrays["cfg_scale"])
    image, time = x[:half], time[:half]
    own = network.model(image, time, condition_of(classes[:half], network))
    none = network.model(image, time, torch.zeros(half, network.label_dim))
    guided, channels = none.lerp(own, strength), x.shape[1]
    three = torch.cat([guided[:, :3], own[:, 3:]], dim=1)
    tolerance = 3 * _said(recorded, group)  # of two outputs, of which one has the weight `strength`
    assert _error(three, arrays["cfg_out_three_channels"][:half, :channels]) <= tolerance
    if "cfg_out_all_channels" in arrays:
        assert _error(guided, arrays["cfg_out_all_channels"][:half, :channels]) <= tolerance


@torch.no_grad()
def test_velocities_as_estimates_of_images(recorded):
    arrays = recorded.load("sit_net.npz")
    network = recorded_dit(arrays, law="flow")
    inner = torch.from_numpy((arrays["t"] > 0) & (arrays["t"] < 1))
    time, x, classes = (torch.from_numpy(arrays[key])[inner] for key in ("t", "x", "y"))
    wide = time.double().reshape(-1, 1, 1, 1)
    estimate = network(x.double() / wide, (1 - time.double()) / time.double(), condition_of(classes, network))
    wanted = torch.from_numpy(arrays["x1_from_velocity"])[inner]
    assert _error(estimate.float(), wanted) <= _said(recorded, "sit_net.npz")


@pytest.mark.parametrize("key", ["48_4", "64_3", "1152_16"])
def test_tables_of_positions(recorded, key):
    wanted = recorded.load("dit_pos_embed.npz")[key]
    width, side = map(int, key.split("_"))
    table = position_table(width, side)
    found = table if table.shape == wanted.shape else table[::7, ::5]
    assert _error(found, wanted) <= _said(recorded, "dit_pos_embed.npz")


def _published(recorded, name):
    """Return the recorded architecture and our network of it, without weights."""
    wanted = recorded.json(f"arch_{name}.json")
    kwargs = {key: value for key, value in wanted["kwargs"].items() if key != "model"}
    with torch.device("meta"):
        return wanted, build_denoiser(config_of(kwargs | {"in_channels": 4} | _SIZES[name], law="ddpm"))


@pytest.mark.parametrize("name", _SIZES)
def test_names_shapes_and_frozen_shares_of_published_networks(recorded, name):
    wanted, network = _published(recorded, name)
    tensors = {name[6:]: list(each.shape) for name, each in network.state_dict().items()}
    assert list(tensors.items()) == list(wanted["parameters"].items())
    sizes = {name: each.numel() for name, each in network.named_parameters()}
    sizes["model.pos_embed"] = network.model.pos_embed.numel()
    assert sum(sizes.values()) == wanted["total"]
    for rule, level in _LEVELS.items():
        frozen, known = [*frozen_parameters(network, [level]), "model.pos_embed"], wanted["levels"][rule]
        assert (len(frozen), sum(sizes[name] for name in frozen)) == (known["tensors"], known["frozen"])


@torch.no_grad()
def test_outputs_of_size_s_with_recipe_weights(recorded):
    arrays, salt = recorded.load("full_dit-s-4.npz"), recorded.parameters["salt"]
    _, network = _published(recorded, "dit-s-4-256")
    weights = {
        f"model.{name}": torch.from_numpy(recorded.recipe(salt, name, shape))
        for name, shape in {name[6:]: tuple(each.shape) for name, each in network.state_dict().items()}.items()
    }
    model = network.model
    weights["model.pos_embed"] = position_table(model.pos_embed.shape[2], model.side)[None]
    network.load_state_dict(weights, strict=True, assign=True)
    name = str(arrays["name"])
    latent = torch.from_numpy(recorded.normal(salt, f"latent:{name}", arrays["x0"].shape).astype("float32"))
    condition = condition_of([int(arrays["y"])], network)
    network.eval()
    out = network.model(latent, torch.tensor([float(arrays["t"])]), condition)
    assert _error(out, arrays["out"][:, : out.shape[1]]) <= _said(recorded, "full_*.npz")
    last = ddpm_sigmas()[int(arrays["t"])]
    one_step = network(latent.double() * (1 + last**2).sqrt(), last.expand(1), condition)
    error = _error(one_step.float(), arrays["x0"]) / abs(arrays["x0"]).max()
    assert error <= _said(recorded, "full_*.npz", r"x0: rel ([\d.e-]+)")
