"""A grid of images of the same seeds for every snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.PngImagePlugin import PngInfo

from onestep import components
from onestep.arithmetic import entry, record_of
from onestep.chain import sampler_for
from onestep.config.run import to_document
from onestep.data._pixels import picture_of
from onestep.files import canonical_json, replacing, sha256_of_file
from onestep.networks import Preconditioned, load_denoiser
from onestep.sampling import Sampler, generate, sampled_in
from onestep.sheets import tiled
from onestep.training.assembly import Training

_MOST_PIXELS, _MOST_IMAGES = 1024, 8  # of a side of the grid
_LEAST_PIXELS = 256  # smaller images are enlarged to this side of the grid
_HEUN_STEPS = 10  # fewer than for a reported number


def sampler_of(training: Training) -> Sampler | None:
    """Return the sampler for which a run's objective trains, with the objective's noise level; None for classifiers.

    That is one step, a chain of several, or ten steps of Heun's method where the objective does not fix their number.
    """
    if not isinstance(training.networks[training.published], Preconditioned):
        return None
    block = sampler_for(to_document(training.run.objective)) or {"name": "heun", "steps": _HEUN_STEPS}
    sampler: Sampler = components.build("sampling", block)
    return sampler


def described(sampler: Sampler) -> dict[str, Any]:
    """Return a sampler as a block of the config, for records."""
    options: Mapping[str, Any] = vars(sampler)
    name = type(sampler).__module__.rpartition(".")[2]
    return {"name": name, **{key: value for key, value in options.items() if value not in (float("inf"), None)}}


def write_grid(
    training: Training, weights: Path, *, sampler: Sampler, device: torch.device, output: Path
) -> np.ndarray:
    """Write the images of the seeds 0, 1, ... of a snapshot as PNG, and return the picture, uint8 [H, W, C].

    The text `onestep` of the PNG has the identity of the images: run, images seen, sampler, seeds, SHA-256 of the
    weights.
    """
    network = load_denoiser(weights).to(device)
    side = max(2, min(_MOST_IMAGES, _MOST_PIXELS // network.img_resolution))
    (made,) = generate(network, sampler, seeds=range(side**2), batch=side**2, codec=training.codec)
    picture = _tiled(made.pixels.numpy(), side=side)
    about = {
        "run": training.name,
        "images_seen": int(weights.stem),
        "sampler": described(sampler),
        "seeds": f"0-{side**2 - 1}",
        "weights_sha256": sha256_of_file(weights),
        **entry(record_of(sampled_in(network, sampler), device=device)),
    }
    note = PngInfo()
    note.add_text("onestep", canonical_json(about))
    with replacing(output) as temporary:
        picture_of(picture.transpose(2, 0, 1)).save(temporary, format="PNG", pnginfo=note)
    return picture


def _tiled(pixels: np.ndarray, *, side: int) -> np.ndarray:
    """Return images, uint8 [side * side, H, W, C], in rows, with gaps, enlarged by a whole factor."""
    sheet = tiled(pixels, columns=side, gap=max(1, pixels.shape[2] // 16), ground=255)
    factor = -(-_LEAST_PIXELS // sheet.shape[1])
    return sheet.repeat(factor, axis=0).repeat(factor, axis=1)
