"""The networks of the recordings: which there are, and each with its weights."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from onestep.networks import build_denoiser

_FOLDER = Path(os.environ.get("ONESTEP_GOLDEN", Path(__file__).parent / "golden"))


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf"


def recordings(pattern: str) -> list[str]:
    """Return the names of the recorded files that match, without their suffix."""
    return sorted(path.stem for path in _FOLDER.glob(pattern))


def assert_recorded(pattern: str) -> None:
    """Refuse a folder without such files, or without one that its manifest lists: their tests would be silent."""
    listed = json.loads((_FOLDER / "manifest.json").read_text())["files"]
    assert recordings(pattern), f"{_FOLDER} holds no {pattern}"
    missing = {Path(name).stem for name in listed if Path(name).match(pattern)} - set(recordings(pattern))
    assert not missing, f"{_FOLDER} lacks files of its manifest: {sorted(missing)}"


class RecordedNetwork:
    """One net_*.npz: a small network's weights, inputs and outputs as tensors."""

    def __init__(self, golden, name: str) -> None:
        self.kwargs = golden.constructor_kwargs(f"{name}.npz")
        self._said = golden.manifest["groups"]["net_*.npz"]["outputs"]
        self.arrays = {key: torch.from_numpy(array) for key, array in golden.load(f"{name}.npz").items()}
        self.state = {key.removeprefix("sd/"): t for key, t in self.arrays.items() if key.startswith("sd/")}

    def network(self, preconditioning: str) -> nn.Module:
        """Return the network in evaluation mode."""
        network = build_denoiser({**self.kwargs, "preconditioning": preconditioning})
        network.load_state_dict(self.state, strict=True)
        return network.eval()

    def labels(self, rows: int | None = None) -> Tensor | None:
        """Return the recorded classes, of the first `rows`; None where the network is unconditional."""
        return self.arrays["labels"][:rows] if "labels" in self.arrays else None

    def options(self, key: str) -> dict[str, float]:
        """Return the numbers that the manifest gives for an output, none where it has the reference's defaults."""
        words = "; ".join(said for keys, said in self._said.items() if key in _spelled_out(keys))
        return {name: float(value) for name, value in re.findall(rf"(\w+)\s*=\s*({_NUMBER})", words)}

    def keys(self, suffix: str) -> list[str]:
        """Return the recorded outputs `edm/<suffix>` and `d2o/<suffix>` that this recording has."""
        return [key for key in (f"edm/{suffix}", f"d2o/{suffix}") if key in self.arrays]


def _spelled_out(keys: str) -> list[str]:
    """Return each of the keys in `d2o/out, out_nolabel`."""
    folder = keys.split("/")[0]
    return [key if "/" in key else f"{folder}/{key}" for key in re.split(r",\s*", keys)]


def assert_close(given: Tensor, recorded: Tensor, *, tolerance: float) -> None:
    """Compare values and types; the tolerance is relative to the largest recorded value where that exceeds 1."""
    assert given.dtype == recorded.dtype and given.shape == recorded.shape
    assert (given - recorded).abs().max().item() <= tolerance * max(1.0, recorded.abs().max().item())


def assert_relatively_close(given: Tensor, recorded: Tensor, *, tolerance: float) -> None:
    """Compare values and types; the tolerance is relative to the largest recorded value."""
    assert given.dtype == recorded.dtype and given.shape == recorded.shape
    assert (given - recorded).abs().max().item() <= tolerance * recorded.abs().max().item()
