"""The codec that decodes the images of a file of weights, as its note states it (`onestep.training.log`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from onestep import components
from onestep.autoencoders import Codec, is_latent
from onestep.autoencoders.identity import Identity
from onestep.published import run_of
from onestep.results import Results

_DIGEST = "weights_sha256"


def codec_note(weights: Path) -> Mapping[str, Any] | None:
    """Return the codec in the note of a snapshot or teacher; None without one, or for a file of another kind."""
    try:
        with safe_open(weights, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("note", "{}")).get("codec")
    except (OSError, SafetensorError, ValueError, RecursionError, AttributeError):
        return None  # refused where the network is read
    return found if isinstance(found, dict) and isinstance(found.get("name"), str) else None


def codec_file(weights: Path) -> Path | None:
    """Return the network of the codec of weights, in the results that they are in or those of the working directory."""
    note = codec_note(weights)
    if note is None or not isinstance(note.get("input"), str):
        return None
    run = run_of(weights)
    places = [*([] if run is None else [Results(run.absolute().parents[1])]), Results()]
    return next((path for each in places if (path := each.codec(note["input"])).exists()), None)


def codec_of(weights: Path, *, file: Path | None = None) -> Codec:
    """Build the codec that decodes the images of a file of weights; `file` is its network, by default `codec_file`.

    Raises:
        ValueError: The network is missing or another one than the weights were trained with, or none is expected.
    """
    note = codec_note(weights)
    if note is None:
        if file is not None:
            found = f"--codec: got {file}, expected none, because {weights} names no codec"
            raise ValueError(f"{found}. Fix: omit it, or convert the weights with their codec")
        return Identity()
    block = {key: value for key, value in note.items() if key not in ("input", _DIGEST)}
    if "input" not in note:
        return components.build("autoencoders", block)
    file = codec_file(weights) if file is None else file
    if file is None:
        raise ValueError(f"{weights}: got no codec, expected the network of inputs.{note['input']}. Fix: give --codec")
    codec: Codec = components.build("autoencoders", block, weights=file)
    if is_latent(codec) and note.get(_DIGEST) not in (None, codec.origin[_DIGEST]):
        found = f"{file}: got a network of SHA-256 {codec.origin[_DIGEST][:16]}"
        raise ValueError(f"{found}, expected {note[_DIGEST][:16]}, that of {weights}. Fix: give that one")
    return codec
