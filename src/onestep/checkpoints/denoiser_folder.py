"""Folders of diffusers with a denoiser: a UNet2DModel or a DiT, by the class that config.json names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onestep.checkpoints._diffusers import read_config
from onestep.checkpoints.diffusers_dit import CLASSES, diffusers_dit_config, read_diffusers_dit
from onestep.checkpoints.diffusers_folder import CONFIG, read_unet2d, read_unet2d_config
from onestep.checkpoints.snapshot import Snapshot

_IN_PIPELINE = "transformer"
"""The folder of a DiT in that of a pipeline."""


def read_denoiser_folder(folder: Path) -> Snapshot:
    """Read a network of `save_pretrained`, or of a pipeline with one, as a denoiser of law `ddpm`.

    ValueError: see `read_unet2d` and `read_diffusers_dit`.
    """
    place = _place_of_dit(folder)
    return read_unet2d(folder) if place is None else read_diffusers_dit(place, folder=folder)


def denoiser_config(folder: Path) -> dict[str, Any]:
    """Return the config of the denoiser in a folder, without its weights; ValueError as in `read_denoiser_folder`."""
    place = _place_of_dit(folder)
    return read_unet2d_config(folder) if place is None else diffusers_dit_config(place / CONFIG)


def _place_of_dit(folder: Path) -> Path | None:
    """Return the folder of a DiT: the folder itself, or that in a pipeline's; None if there is none."""
    if (folder / _IN_PIPELINE / CONFIG).exists():
        return folder / _IN_PIPELINE
    if (folder / CONFIG).exists() and read_config(folder / CONFIG).get("_class_name") in CLASSES:
        return folder
    return None
