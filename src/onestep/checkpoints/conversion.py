"""Conversion of a published pickle or folder, or of a snapshot of this package, to a teacher: weights and a card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from onestep.chain import sampler_in
from onestep.checkpoints.autoencoder_folder import place_of, read_autoencoder
from onestep.checkpoints.denoiser_folder import read_denoiser_folder
from onestep.checkpoints.digests import WEIGHTS, known_digest
from onestep.checkpoints.dit_weights import network_of_no_class, read_dit
from onestep.checkpoints.edm_pickle import of_denoiser, read_edm_pickle
from onestep.checkpoints.snapshot import Snapshot, expect_finite, read_snapshot, write_snapshot
from onestep.config.laws import laws_like
from onestep.files import write_text
from onestep.folders import named_folder

_NAMES = {"SongUNet": "song_unet", "DhariwalUNet": "dhariwal_unet"}


def convert_edm_pickle(
    source: Path | str,
    *,
    weights: Path | str,
    architecture: Path | str,
    preconditioning: str = "edm",
    codec: Mapping[str, Any] | None = None,
) -> None:
    """Convert one of EDM's or EDM2's network pickles, or one of that form, to a teacher; nothing in it is executed.

    `preconditioning` is `edm` for all networks of EDM and EDM2, `d2o` for the generators of D2O; the class name in the
    file is only noted. `weights` is the safetensors file to write, `architecture` the YAML card: the config, the
    source with its SHA-256, and that of the weights. A pickle that is refused or damaged, whose weights are not finite,
    or that holds neither a SongUNet nor a DhariwalUNet nor a network of EDM2, is a ValueError. Weights of EDM2 stay
    float16 in the file, as published. `codec` is noted: the block of what decodes images that are latents.
    """
    checkpoint = of_denoiser(read_edm_pickle(source))
    expect_finite(source, checkpoint.state_dict)
    config, note = {**checkpoint.config, "preconditioning": preconditioning}, {"class_name": checkpoint.class_name}
    network = Snapshot(config=config, state_dict=checkpoint.state_dict, note=note)
    _write_teacher(source, network, weights=weights, architecture=architecture, codec=codec)


def convert_snapshot(
    source: Path | str,
    *,
    weights: Path | str,
    architecture: Path | str,
    codec: Mapping[str, Any] | None = None,
    without_classes: bool = False,
) -> None:
    """Convert a snapshot, whose config holds its preconditioning; arguments and errors as in `convert_edm_pickle`.

    `without_classes` takes the network for no class: see `network_of_no_class`.
    """
    found = read_snapshot(source)
    sampler = sampler_in(found.note)
    note = {} if sampler is None else {"sampler": sampler}
    note |= {"codec": found.note["codec"]} if isinstance(found.note.get("codec"), dict) else {}
    network = dataclasses.replace(found, note=note)
    _write_teacher(
        source, network, weights=weights, architecture=architecture, codec=codec, without_classes=without_classes
    )


def convert_folder(
    source: Path | str,
    *,
    weights: Path | str,
    architecture: Path | str,
    codec: Mapping[str, Any] | None = None,
    without_classes: bool = False,
) -> None:
    """Convert a folder of diffusers, or the `.folder` file of an input that names it.

    A UNet2DModel or a DiT becomes a teacher of law `ddpm`, an AutoencoderKL the weights of codec `kl`. What
    `read_denoiser_folder` and `read_autoencoder` refuse is a ValueError; `weights` and `architecture` as in
    `convert_edm_pickle`, `without_classes` as in `convert_snapshot`.
    """
    folder = named_folder(Path(source))
    network = read_autoencoder(folder) if place_of(folder) is not None else read_denoiser_folder(folder)
    _write_teacher(
        source, network, weights=weights, architecture=architecture, codec=codec, without_classes=without_classes
    )


def convert_state_dict(
    source: Path | str,
    *,
    weights: Path | str,
    architecture: Path | str,
    preconditioning: str | None,
    codec: Mapping[str, Any] | None = None,
    without_classes: bool = False,
) -> None:
    """Convert a state dict of DiT (law `ddpm`) or SiT (`flow`) to a teacher; nothing in it is executed.

    What `read_dit` refuses is a ValueError; `weights` and `architecture` as in `convert_edm_pickle`, `without_classes`
    as in `convert_snapshot`.
    """
    network = read_dit(Path(source), law=preconditioning)
    _write_teacher(
        source, network, weights=weights, architecture=architecture, codec=codec, without_classes=without_classes
    )


def laws_of_snapshot(source: Path | str) -> tuple[str, ...]:
    """Return the laws that suit the network of a snapshot; ValueError: the file is none."""
    return laws_like(str(read_snapshot(source).config.get("preconditioning", "edm")))


def _write_teacher(
    source: Path | str,
    network: Snapshot,
    *,
    weights: Path | str,
    architecture: Path | str,
    codec: Mapping[str, Any] | None,
    without_classes: bool = False,
) -> None:
    """Write the weights, then the card, so that a card implies complete weights."""
    network = network_of_no_class(source, network) if without_classes else network
    # `name: song_unet` first, in place of EDM's `model_type: SongUNet`.
    rest = {key: value for key, value in network.config.items() if key not in ("name", "model_type")}
    given = network.config.get("name", network.config.get("model_type"))
    name = _NAMES.get(given, given if "name" in network.config else None) if isinstance(given, str) else None
    if name is None:
        raise ValueError(f"{source}: its config names the network {given!r}, expected {' or '.join(_NAMES)}")
    config = {"name": name, **rest}
    origin = {} if "sha256" in network.note else {"source": Path(source).name, "sha256": known_digest(Path(source))}
    note = {**origin, **network.note, **({} if codec is None else {"codec": dict(codec)})}
    digest = write_snapshot(weights, network.state_dict, config, note=note)
    numbers = sum(tensor.numel() for tensor in network.state_dict.values())
    # Through JSON, because YAML has no tuples.
    card = {**note, WEIGHTS: digest, "numbers": numbers, "network": json.loads(json.dumps(config))}
    title = f"# The architecture of {Path(weights).name}, and where it came from.\n"
    write_text(architecture, title + yaml.safe_dump(card, sort_keys=False, default_flow_style=None, width=100))
