"""The published architectures at full size: names, shapes and frozen sets, and outputs with recipe weights."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onestep.networks import build_denoiser, frozen_parameters
from recorded_networks import assert_close, assert_recorded, recordings

pytestmark = pytest.mark.golden

_LEVELS = ["conv", "proj", "qkv", "skip"]


def test_there_are_recordings():
    assert_recorded("arch_*.json")
    assert_recorded("full_*.npz")


def _shell(kwargs, preconditioning="edm"):
    """Return the network without numbers, so that 300 million parameters cost nothing."""
    with torch.device("meta"):
        return build_denoiser({**kwargs, "preconditioning": preconditioning})


@pytest.mark.parametrize("name", recordings("arch_*.json"))
def test_names_and_shapes(golden, name):
    recorded = golden.json(f"{name}.json")
    network = _shell(recorded["constructor_kwargs"])
    parameters = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    assert parameters == {name: entry["shape"] for name, entry in recorded["params"].items()}
    assert {name: list(buffer.shape) for name, buffer in network.named_buffers()} == recorded["buffers"]
    assert sum(parameter.numel() for parameter in network.parameters()) == recorded["total_params"]


@pytest.mark.parametrize("name", recordings("arch_*.json"))
def test_frozen_parameters(golden, name):
    recorded = golden.json(f"{name}.json")
    parameters, network = recorded["params"], _shell(recorded["constructor_kwargs"])
    for level, total in recorded["frozen_params_optimizer_rule"].items():
        frozen = frozen_parameters(network, _LEVELS[: int(level[-1]) + 1])
        assert frozen == [name for name, entry in parameters.items() if entry[f"frozen_{level}"]]
        assert sum(int(np.prod(parameters[name]["shape"])) for name in frozen) == total
        share = recorded["frozen_fraction_optimizer_rule"][level]
        assert total / recorded["total_params"] == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("name", recordings("full_*.npz"))
@torch.no_grad()
def test_full_size_outputs(golden, name):
    recorded, kwargs, arch = golden.load(f"{name}.npz"), _kwargs(golden, name), name.removeprefix("full_")
    salt = golden.parameters["salts"]["full"]
    weights = _recipe_state(golden, salt, kwargs)
    latent = golden.normal(salt, f"latent:{arch}", recorded["latent"].shape).astype(np.float32)
    assert np.array_equal(latent, recorded["latent"])
    outputs = [key for key in recorded if "_out_sigma" in key]
    assert outputs
    for key in outputs:
        preconditioning, sigma, augmented = re.fullmatch(r"(edm|d2o)_out_sigma([\d.]+)(_aug)?", key).groups()
        network = _shell(kwargs, preconditioning).eval()
        network.load_state_dict(weights, strict=True, assign=True)
        x = torch.from_numpy(latent) * float(sigma)
        aug = golden.normal(salt, f"aug:{arch}", (len(x), kwargs["augment_dim"])) if augmented else None
        described = torch.from_numpy(aug.astype(np.float32)) if augmented else None
        labels = _labels(golden, network.label_dim, rows=len(x))
        out = network(x, torch.full((len(x),), float(sigma)), labels, described)
        assert_close(out, torch.from_numpy(recorded[key]), tolerance=5e-5)


def _kwargs(golden, name):
    entry = golden.manifest["files"][f"{name}.npz"]
    if "constructor_kwargs" in entry:
        return entry["constructor_kwargs"]
    return golden.json(f"{name.replace('full_', 'arch_')}.json")["constructor_kwargs"]


def _recipe_state(golden, salt, kwargs):
    """Regenerate all weights; where the recipe leaves the constructor's value, that is the low-pass filter."""
    line = torch.tensor(kwargs.get("resample_filter", [1, 1]), dtype=torch.float32)
    low_pass = (torch.outer(line, line) / line.sum() ** 2)[None, None]
    shapes = {name: tuple(tensor.shape) for name, tensor in _shell(kwargs).state_dict().items()}
    numbers = {name: golden.recipe(salt, name, shape) for name, shape in shapes.items()}
    return {name: low_pass if array is None else torch.from_numpy(array) for name, array in numbers.items()}


def _labels(golden, classes, *, rows):
    if classes == 0:
        return None
    largest = int(golden.said("full_*.npz", r"min\((\d+),"))
    return F.one_hot(torch.full((rows,), min(largest, classes - 1)), classes).float()
