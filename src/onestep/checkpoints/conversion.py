"""Conversion of a published pickle, or of a snapshot of this package, to a teacher: safetensors weights and a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from onestep.checkpoints.edm_pickle import read_edm_pickle
from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.files import sha256_of_file, write_text

_NAMES = {"SongUNet": "song_unet", "DhariwalUNet": "dhariwal_unet"}


def convert_edm_pickle(
    source: Path | str, *, weights: Path | str, architecture: Path | str, preconditioning: str = "edm"
) -> None:
    """Convert one of EDM's network pickles, or one of the same form, to a teacher; nothing in it is executed.

    Args:
        source: The pickle.
        preconditioning: `edm` for all nine networks of EDM, `d2o` for the one-step generators of D2O. The class name
            in the file is kept in the note and otherwise ignored.
        weights: Where to write the safetensors file.
        architecture: Where to write the YAML card: the config, and the source with its SHA-256.

    Raises:
        ValueError: The pickle is refused or damaged, or its network is neither a SongUNet nor a DhariwalUNet.
    """
    checkpoint = read_edm_pickle(source)
    config = {**_our_spelling(source, checkpoint.config), "preconditioning": preconditioning}
    note = {**_origin(source), "class_name": checkpoint.class_name}
    _write_teacher(checkpoint.state_dict, config, note, weights=weights, architecture=architecture)


def convert_snapshot(source: Path | str, *, weights: Path | str, architecture: Path | str) -> None:
    """Convert a snapshot of a run to a teacher of the same form; arguments as in `convert_edm_pickle`.

    Its preconditioning is in its config.

    Raises:
        ValueError: The file is not a snapshot, or its config names no network.
    """
    snapshot = read_snapshot(source)
    config = _our_spelling(source, snapshot.config)
    _write_teacher(snapshot.state_dict, config, _origin(source), weights=weights, architecture=architecture)


def _our_spelling(source: Path | str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with `name: song_unet` first, in place of EDM's `model_type: SongUNet`."""
    rest = {key: value for key, value in config.items() if key not in ("name", "model_type")}
    given = config.get("name", config.get("model_type"))
    name = _NAMES.get(given, given if "name" in config else None) if isinstance(given, str) else None
    if name is None:
        raise ValueError(f"{source}: its config names the network {given!r}, expected {' or '.join(_NAMES)}")
    return {"name": name, **rest}


def _origin(source: Path | str) -> dict[str, Any]:
    return {"source": Path(source).name, "sha256": sha256_of_file(source)}


def _write_teacher(
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    note: Mapping[str, Any],
    *,
    weights: Path | str,
    architecture: Path | str,
) -> None:
    """Write the weights, then the card, so that a card implies complete weights."""
    write_snapshot(weights, state_dict, config, note=note)
    numbers = sum(tensor.numel() for tensor in state_dict.values())
    card = {**note, "numbers": numbers, "network": _as_lists(config)}
    title = f"# The architecture of {Path(weights).name}, and where it came from.\n"
    write_text(architecture, title + yaml.safe_dump(card, sort_keys=False, default_flow_style=None, width=100))


def _as_lists(value: Any) -> Any:
    """Return `value` with tuples as lists: YAML has no tuples."""
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value
