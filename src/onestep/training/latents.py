"""What a run's networks take of a dataset: pixels encoded, or draws from the posterior of its latents.

The draw of an image follows from its number in the run, as all random numbers do (`onestep.training.streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep.autoencoders import Codec, LatentCodec, is_latent
from onestep.data._batches import Archive
from onestep.training.streams import Draw, drawn_rows

_STREAM = "posterior"  # the name of the random numbers, as of a phase


def posterior_numbers(
    codec: Codec, stored: Tensor, *, seed: int, rows: Sequence[int], stream: str = "", pinned: bool = False
) -> Tensor | None:
    """Return the random numbers of rows of a dataset, on the CPU; None if `images_of` draws nothing."""
    if stored.dtype == torch.uint8 or not (is_latent(codec) and codec.draws):
        return None
    draw = Draw("normal", (codec.latent_channels, *stored.shape[2:]))
    (normal,) = drawn_rows([draw], seed=seed, phase=_STREAM + stream, rows=rows, pinned=pinned)
    return normal


def images_of(codec: Codec, stored: Tensor, normal: Tensor | None) -> Tensor:
    """Return images [B, C, H, W] of rows of a dataset: pixels, uint8, or means and deviations of latents, float32."""
    if stored.dtype == torch.uint8:
        return codec.encode(stored)
    assert is_latent(codec), "checked by `shape_in`"
    return codec.drawn(stored, normal)


def decoder_of(codec: Codec) -> Callable[[Tensor], Tensor] | None:
    """Return the function from images to pictures, with a gradient, where images are latents."""
    return codec.pictures if is_latent(codec) else None


def shape_in(archive: Archive, *, codec: Codec, path: Path) -> tuple[int, int]:
    """Return resolution and channels of the images of a run; ValueError: archive and codec do not fit each other."""
    if archive.latents:
        _check_latents(archive, codec=codec, path=path)
        return archive.resolution, archive.channels
    if is_latent(codec):
        size, found = archive.resolution, (archive.channels, archive.resolution % codec.factor)
        if found != (codec.channels, 0):
            expected = f"{codec.channels} and a multiple of {codec.factor} for its codec"
            raise ValueError(f"{path}: got {archive.channels} channels of {size} pixels, expected {expected}")
        return size // codec.factor, codec.latent_channels
    example = torch.zeros(1, archive.channels, archive.resolution, archive.resolution, dtype=torch.uint8)
    _, channels, _, resolution = codec.encode(example).shape
    return resolution, channels


def _check_latents(archive: Archive, *, codec: Codec | LatentCodec, path: Path) -> None:
    if not is_latent(codec):
        raise ValueError(f"{path}: got latents, expected pixels for a run without a codec. Fix: name its codec")
    if archive.channels != codec.latent_channels:
        found = f"{path}: got latents of {archive.channels} channels, expected {codec.latent_channels}"
        raise ValueError(f"{found}, those of the run's codec. Fix: the codec that made them")
    made: Mapping[str, Any] | None = getattr(archive, "codec", None)
    for key, value in codec.origin.items() if made is not None else ():
        assert made is not None
        if made.get(key) != value:
            found = f"{path}: got latents of a codec with {key} {made.get(key)}"
            raise ValueError(f"{found}, expected {value}, that of the run. Fix: the codec that made them")
