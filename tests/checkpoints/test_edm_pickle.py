"""EDM's pickles: what was saved is what is read, for old and new writers; whatever is damaged is one clear error."""

from __future__ import annotations

import struct
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edm_writer
import hostile_files
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from onestep.checkpoints.edm_pickle import EdmCheckpoint, read_edm_pickle
from onestep.networks import build_denoiser

WRITERS: dict[str, Callable[[Any], bytes]] = {
    "protocol 2": lambda document: edm_writer.dump(document, protocol=2),
    "protocol 3": lambda document: edm_writer.dump(document, protocol=3),
    "protocol 4": lambda document: edm_writer.dump(document, protocol=4),
    "protocol 5": lambda document: edm_writer.dump(document, protocol=5),
    "torch 1.12 and numpy 1, protocol 2": lambda document: _aged_dump(document, protocol=2),
    "torch 1.12 and numpy 1, protocol 3": lambda document: _aged_dump(document, protocol=3),
    "torch 1.12 and numpy 1, protocol 4": lambda document: _aged_dump(document, protocol=4),
}


def _aged_dump(document: dict[str, Any], *, protocol: int) -> bytes:
    edm_writer.aged(document["ema"])
    return edm_writer.with_old_names(edm_writer.dump(document, protocol=protocol))


def read(content: bytes, folder: Path) -> EdmCheckpoint:
    path = folder / "network.pkl"
    path.write_bytes(content)
    return read_edm_pickle(path)


def recorded(golden: Any) -> list[str]:
    return sorted(name for name in golden.manifest["files"] if name.startswith("net_") and name.endswith(".npz"))


def weights(golden: Any, name: str) -> dict[str, np.ndarray]:
    arrays = golden.load(name)
    return {key.removeprefix("sd/"): array for key, array in arrays.items() if key.startswith("sd/")}


def same(read_tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(read_tensors) == list(expected) and all(
        mine.dtype == theirs.dtype and mine.shape == theirs.shape and _octets(mine) == _octets(theirs)
        for mine, theirs in zip(read_tensors.values(), expected.values(), strict=True)
    )


def _octets(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.golden
@pytest.mark.parametrize("writer", WRITERS)
def test_recorded_networks_come_back_bitwise(writer: str, golden: Any, tmp_path: Path) -> None:
    for name in recorded(golden):
        arrays, config = weights(golden, name), golden.constructor_kwargs(name)
        checkpoint = read(WRITERS[writer]({"ema": edm_writer.network(arrays, config)}), tmp_path)
        assert checkpoint.config == config
        assert same(checkpoint.state_dict, {key: torch.from_numpy(array) for key, array in arrays.items()})


@pytest.mark.golden
def test_read_networks_compute_what_was_recorded(golden: Any, tmp_path: Path) -> None:
    for name in recorded(golden):
        arrays = golden.load(name)
        content = edm_writer.dump({"ema": edm_writer.network(weights(golden, name), golden.constructor_kwargs(name))})
        checkpoint = read(content, tmp_path)
        network = build_denoiser(checkpoint.config).eval()
        network.load_state_dict(checkpoint.state_dict, strict=True)
        x, sigma, labels = (
            torch.from_numpy(arrays[key]) if key in arrays else None for key in ("x", "sigma", "labels")
        )
        with torch.no_grad():
            computed = network(x, sigma, labels).numpy()
        np.testing.assert_allclose(computed, arrays["edm/out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("writer", WRITERS)
def test_the_written_files_are_genuine(writer: str, tmp_path: Path) -> None:
    content = WRITERS[writer]({"ema": _varied(), "loss_fn": edm_writer.PersistentModule("EDMLoss"), "augment_pipe": None})
    if "numpy 1" in writer:
        content = content.replace(b"numpy.core.multiarray", b"numpy.core.multiarray")
    else:
        assert same(read(content, tmp_path).state_dict, edm_writer.unpickle(content)["ema"].state_dict())
