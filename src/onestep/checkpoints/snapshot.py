"""A network in one safetensors file: weights, the config that builds it, and a note of its origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from onestep.checkpoints._tensor_file import read_tensors, write_tensors
from onestep.files import canonical_json

_FORMAT = "onestep-snapshot-1"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A network from a file.

    Attributes:
        config: Arguments that build the network, after JSON (tuples are lists).
        state_dict: Its parameters and buffers on the CPU, in the order of writing.
        note: Other JSON-able facts.
    """

    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    note: dict[str, Any]


def write_snapshot(
    path: Path | str,
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write a network, complete or not at all; equal input gives equal bytes.

    Raises:
        ValueError: The config or the note cannot be written as JSON, or a value of the state dict is not a tensor.
    """
    texts = {"format": _FORMAT}
    for what, value in (("config", config), ("note", note or {})):
        try:
            texts[what] = canonical_json(dict(value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: the {what} cannot be written as JSON ({error})") from error
    write_tensors(path, state_dict, texts=texts)


def read_snapshot(path: Path | str) -> Snapshot:
    """Read a file of `write_snapshot`.

    Raises:
        ValueError: The file is not safetensors, is truncated, or was not written by `write_snapshot`.
        OSError: The file cannot be opened.
    """
    tensors, texts = read_tensors(path)
    if texts.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: a safetensors file without a network's config (format {texts.get('format')!r}, expected "
            f"{_FORMAT!r}); expected a snapshot of onestep"
        )
    return Snapshot(config=_mapping(path, "config", texts), state_dict=tensors, note=_mapping(path, "note", texts))


def _mapping(path: Path | str, what: str, texts: Mapping[str, str]) -> dict[str, Any]:
    try:
        value = json.loads(texts.get(what, ""))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: the {what} in the file's header is missing or damaged; make the file again")
    return value
