"""Weights as published: safetensors, or a file of `torch.save`, from which only tensors are read."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep.checkpoints.snapshot import read_tensors

# Keys under which training code stores weights (DeiT: `model`).
_WRAPPERS = ("model", "state_dict")


def read_published_weights(path: Path | str) -> dict[str, Tensor]:
    """Read a network's tensors by name from `.safetensors`, or from `.pth`, `.pt` or `.bin` of `torch.save`.

    Raises:
        ValueError: The file has another ending, is damaged, or holds anything but tensors by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise ValueError(f"{path}: weights are read from .safetensors, .pth, .pt and .bin, not from {path.suffix!r}")
    document = _document(path)
    for key in _WRAPPERS:
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict) or not document or not all(isinstance(v, Tensor) for v in document.values()):
        raise ValueError(f"{path}: expected tensors by name, at the top or under {' or '.join(_WRAPPERS)}")
    return dict(document)


def read_published_tensor(path: Path | str) -> Tensor:
    """Read the one tensor in a file of `torch.save`; ValueError if the file is damaged or holds anything else."""
    path = Path(path)
    tensor = _document(path)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{path}: holds a {type(tensor).__name__}, expected one tensor")
    return tensor


def _document(path: Path) -> Any:
    """Return the content of a `torch.save` file; only tensors and plain values are read."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise ValueError(
                    f"{path}: a TorchScript program, which would have to be executed; fetch the same weights as "
                    "tensors (safetensors, or a file of torch.save)"
                )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a whole file of tensors alone ({reason}); fetch it again") from None
