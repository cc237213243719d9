"""Recordings of EDM2's networks (subfolder `networks` of the recordings)."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onestep.networks import build_denoiser


def networks_of(golden: Any) -> Any:
    """Return the recordings of networks beside others; skip the test where there are none of EDM2's."""
    folder = golden.folder / "networks"
    if not (folder / "manifest.json").exists():
        pytest.skip(f"{folder}: no recordings of networks")
    recorded = type(golden)(folder)
    if not any(name.startswith("edm2_") for name in recorded.manifest["files"]):
        pytest.skip(f"{folder}: no recordings of EDM2")
    return recorded


def tolerance(recorded: Any, group: str, pattern: str) -> float:
    """Return the number that `pattern` captures in the words on a group's tolerances; `as NAME` is those of another."""
    words = recorded.manifest["groups"][group]["tol"]
    if other := re.fullmatch(r"as (\w+)", words):
        return tolerance(recorded, f"{other[1]}.npz", pattern)
    found = re.search(pattern, words)
    assert found, f"no {pattern!r} in {words!r}"
    return float(found[1])


def tensors(arrays: dict[str, np.ndarray], prefix: str = "") -> dict[str, Tensor]:
    """Return the arrays of numbers below a prefix as tensors."""
    found = {key.removeprefix(prefix): each for key, each in arrays.items() if key.startswith(prefix)}
    return {key: torch.from_numpy(each) for key, each in found.items() if each.dtype.kind in "fiu"}


def network_of(arrays: dict[str, np.ndarray], *, owner: str = "", preconditioning: str = "edm") -> nn.Module:
    """Return a recorded network with the tensors of its file, by the names of the file, in evaluation mode."""
    config = json.loads(str(arrays[f"{owner}kwargs"]))
    network = build_denoiser({"name": "edm2", **config, "preconditioning": preconditioning})
    network.load_state_dict(tensors(arrays, f"{owner}sd/"), strict=True)
    return network.eval()


def own_name(name: str) -> str | None:
    """Return the name in a denoiser of a published tensor; None of the estimate of the loss, which it lacks."""
    return None if name.startswith("logvar_") else f"model.{name.removeprefix('unet.')}"


def recipe(recorded: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Regenerate one recipe weight as float32, by its published name."""
    leaf, salt = name.rsplit(".", 1)[-1], recorded.parameters["salt"]
    numbers = recorded.normal(salt, name, shape)
    if leaf in ("emb_gain", "out_gain"):
        return np.asarray(0.5 + 0.1 * numbers, np.float32)
    if leaf == "phases":
        return (2 * np.pi * (0.5 + 0.5 * np.tanh(numbers))).astype(np.float32)
    found = recorded.recipe(salt, name, shape)
    assert found is not None
    return found
