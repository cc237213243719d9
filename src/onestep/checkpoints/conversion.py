"""Conversion of a published pickle, or of a snapshot of this package, to a teacher: safetensors weights and a card."""

from __future__ import annotations

import json
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
        preconditioning: `edm` for all nine networks of EDM, `d2o` for the one-step generators of D2O; the class name
            in the file is only noted.
        weights: Where to write the safetensors file.
        architecture: Where to write the YAML card: the config, and the source with its SHA-256.

    Raises:
        ValueError: The pickle is refused or damaged, or its network is neither a SongUNet nor a DhariwalUNet.
    """
    checkpoint = read_edm_pickle(source)
    config, facts = {**checkpoint.config, "preconditioning": preconditioning}, {"class_name": checkpoint.class_name}
    _write_teacher(source, checkpoint.state_dict, config, facts, weights=weights, architecture=architecture)


def convert_snapshot(source: Path | str, *, weights: Path | str, architecture: Path | str) -> None:
    """Convert a snapshot of a run to a teacher of the same form; arguments as in `convert_edm_pickle`.

    Its preconditioning is in its config.

    Raises:
        ValueError: The file is not a snapshot, or its config names no network.
    """
    snapshot = read_snapshot(source)
    _write_teacher(source, snapshot.state_dict, snapshot.config, {}, weights=weights, architecture=architecture)


def _write_teacher(
    source: Path | str,
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    weights: Path | str,
    architecture: Path | str,
) -> None:
    """Write the weights, then the card, so that a card implies complete weights."""
    # `name: song_unet` first, in place of EDM's `model_type: SongUNet`.
    rest = {key: value for key, value in config.items() if key not in ("name", "model_type")}
    given = config.get("name", config.get("model_type"))
    name = _NAMES.get(given, given if "name" in config else None) if isinstance(given, str) else None
    if name is None:
        raise ValueError(f"{source}: its config names the network {given!r}, expected {' or '.join(_NAMES)}")
    network = {"name": name, **rest}
    note = {"source": Path(source).name, "sha256": sha256_of_file(source), **facts}
    write_snapshot(weights, state_dict, network, note=note)
    numbers = sum(tensor.numel() for tensor in state_dict.values())
    # Through JSON, because YAML has no tuples.
    card = {**note, "numbers": numbers, "network": json.loads(json.dumps(network))}
    title = f"# The architecture of {Path(weights).name}, and where it came from.\n"
    write_text(architecture, title + yaml.safe_dump(card, sort_keys=False, default_flow_style=None, width=100))
