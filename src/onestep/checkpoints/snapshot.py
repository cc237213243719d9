"""Safetensors files with equal bytes for equal content, and a network in one: weights, config, note of its origin.

The library's writer orders the texts of the header at random; this one sorts them
(https://github.com/huggingface/safetensors#format). Files are read by the library, which checks them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from onestep.checkpoints.digests import checked
from onestep.files import canonical_json, regular_file, replacing

_FORMAT = "onestep-snapshot-1"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], *, texts: Mapping[str, str]) -> str:
    """Write `tensors` and `texts`, complete or not at all, and return the SHA-256; equal input gives equal bytes.

    Tensors may be on any device, have any layout in memory, and share it; each is written in full. A value that is no
    tensor, or has a number type that the format lacks, is a ValueError.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES or name == "__metadata__":
            what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{path}: {name!r} is {what}; expected a tensor of {', '.join(_DTYPES.values())}")
    # Wide numbers first keeps every tensor aligned to its own width.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    digest = hashlib.sha256()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        header = _header(tensors, order, texts)
        digest.update(header)
        file.write(header)
        for name in order:
            numbers = tensors[name].detach().cpu().contiguous().reshape(-1)
            content = numbers.view(torch.uint8).numpy().data
            digest.update(content)
            file.write(content)
    return digest.hexdigest()


def _header(tensors: Mapping[str, Tensor], order: list[str], texts: Mapping[str, str]) -> bytes:
    """Return the header: its length, then JSON that lists the tensors in the order of writing."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(texts.items())), **dict.fromkeys(tensors)}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(entries, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of `write_tensors`: tensors on the CPU in the order of writing, and the texts; else a ValueError."""
    regular_file(path)
    try:
        # A copy, because the library's tensors are views of the file, which may be replaced or deleted meanwhile.
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            texts = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); delete it and make it again") from error
    # In the header's order, which the library does not keep.
    with open(path, "rb") as content:
        names = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    return {name: tensors[name] for name in names if name != "__metadata__"}, texts


def expect_finite(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError with the name of the first tensor that holds NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            odd = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{path}: {name}: got {odd:,} of {tensor.numel():,} numbers that are NaN or infinite, expected finite "
                "weights. Fix: make the file again, from a training that did not diverge"
            )


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A network from a file; config and note are as JSON keeps them (tuples are lists)."""

    config: dict[str, Any]  # arguments that build the network
    state_dict: dict[str, Tensor]  # parameters and buffers on the CPU, in the order of writing
    note: dict[str, Any]  # other facts


def write_snapshot(
    path: Path | str, state_dict: Mapping[str, Tensor], config: Mapping[str, Any], *, note: Mapping[str, Any] = {}
) -> str:
    """Write a network, complete or not at all, and return the SHA-256; equal input gives equal bytes.

    A config or note that JSON cannot keep, or a value of the state dict that is no tensor, is a ValueError.
    """
    texts = {"format": _FORMAT}
    for what, value in (("config", config), ("note", note)):
        try:
            texts[what] = canonical_json(dict(value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: the {what} cannot be written as JSON ({error})") from error
    return write_tensors(path, state_dict, texts=texts)


def read_snapshot(path: Path | str) -> Snapshot:
    """Read a file of `write_snapshot`.

    ValueError: It is another file or truncated, has another digest than is recorded beside it, or its weights are not
    finite.
    """
    tensors, texts = read_tensors(checked(path))
    if (found := texts.get("format")) != _FORMAT:
        expected = f"(format {found!r}, expected {_FORMAT!r}); expected a snapshot of onestep"
        raise ValueError(f"{path}: a safetensors file without a network's config {expected}")
    expect_finite(path, tensors)
    return Snapshot(config=_mapping(path, "config", texts), state_dict=tensors, note=_mapping(path, "note", texts))


def _mapping(path: Path | str, what: str, texts: Mapping[str, str]) -> dict[str, Any]:
    try:
        value = json.loads(texts.get(what, ""))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: the {what} in the file's header is missing or damaged; make the file again")
    return value
