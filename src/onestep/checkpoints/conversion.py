"""Conversion of a published pickle, or of a snapshot of this package, to a teacher: safetensors weights and a card."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import yaml

from onestep.chain import sampler_in
from onestep.checkpoints.digests import WEIGHTS, known_digest
from onestep.checkpoints.edm_pickle import read_edm_pickle
from onestep.checkpoints.snapshot import Snapshot, expect_finite, read_snapshot, write_snapshot
from onestep.files import write_text

_NAMES = {"SongUNet": "song_unet", "DhariwalUNet": "dhariwal_unet"}


def convert_edm_pickle(
    source: Path | str, *, weights: Path | str, architecture: Path | str, preconditioning: str = "edm"
) -> None:
    """Convert one of EDM's network pickles, or one of the same form, to a teacher; nothing in it is executed.

    `preconditioning` is `edm` for all nine networks of EDM, `d2o` for the one-step generators of D2O; the class name
    in the file is only noted. `weights` is the safetensors file to write, `architecture` the YAML card: the config, the
    source with its SHA-256, and that of the weights. A pickle that is refused or damaged, whose weights are not finite,
    or that holds neither a SongUNet nor a DhariwalUNet, is a ValueError.
    """
    checkpoint = read_edm_pickle(source)
    expect_finite(source, checkpoint.state_dict)
    config, note = {**checkpoint.config, "preconditioning": preconditioning}, {"class_name": checkpoint.class_name}
    network = Snapshot(config=config, state_dict=checkpoint.state_dict, note=note)
    _write_teacher(source, network, weights=weights, architecture=architecture)


def convert_snapshot(source: Path | str, *, weights: Path | str, architecture: Path | str) -> None:
    """Convert a snapshot, whose config holds its preconditioning; arguments and errors as in `convert_edm_pickle`."""
    found = read_snapshot(source)
    sampler = sampler_in(found.note)
    network = dataclasses.replace(found, note={} if sampler is None else {"sampler": sampler})
    _write_teacher(source, network, weights=weights, architecture=architecture)


def _write_teacher(source: Path | str, network: Snapshot, *, weights: Path | str, architecture: Path | str) -> None:
    """Write the weights, then the card, so that a card implies complete weights."""
    # `name: song_unet` first, in place of EDM's `model_type: SongUNet`.
    rest = {key: value for key, value in network.config.items() if key not in ("name", "model_type")}
    given = network.config.get("name", network.config.get("model_type"))
    name = _NAMES.get(given, given if "name" in network.config else None) if isinstance(given, str) else None
    if name is None:
        raise ValueError(f"{source}: its config names the network {given!r}, expected {' or '.join(_NAMES)}")
    config = {"name": name, **rest}
    note = {"source": Path(source).name, "sha256": known_digest(Path(source)), **network.note}
    digest = write_snapshot(weights, network.state_dict, config, note=note)
    numbers = sum(tensor.numel() for tensor in network.state_dict.values())
    # Through JSON, because YAML has no tuples.
    card = {**note, WEIGHTS: digest, "numbers": numbers, "network": json.loads(json.dumps(config))}
    title = f"# The architecture of {Path(weights).name}, and where it came from.\n"
    write_text(architecture, title + yaml.safe_dump(card, sort_keys=False, default_flow_style=None, width=100))
