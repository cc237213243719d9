"""The two forms of an archive: pixels, as PNG files (EDM), and latents, as files of numpy (EDM2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onestep.data import Dataset
from onestep.data import _pixels as pixels_of
from onestep.data.image_zip import ImageZip
from onestep.data.latent_zip import LatentZip, bytes_of

Archive: TypeAlias = ImageZip | LatentZip


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the images of a dataset are stored.

    Attributes:
        ending: Of the files.
        shape: That of the array of an image of a dataset.
        checked: Returns an image as an array; ValueError where it does not fit.
        encoded: Returns the file of an image.
        opened: Returns an archive by its path.
        sums: Sums over images of the numbers and of their squares [2, C], of which `statistics` makes entries of the
            card.
        about: Further keys of `dataset.json`.
    """

    ending: str
    shape: Callable[[Dataset], tuple[int, ...]]
    checked: Callable[..., np.ndarray]
    encoded: Callable[[np.ndarray], bytes]
    opened: Callable[[Path], Archive]
    sums: Callable[..., np.ndarray]
    statistics: Callable[..., dict[str, Any]]
    about: Callable[[Dataset], dict[str, Any]]


def _pixel_sums(images: list[np.ndarray], *, channels: int) -> np.ndarray:
    """Return the sum and the sum of squares of each channel over images [C, H, W], exact integers [2, C]."""
    numbers = np.stack(images).astype(np.uint32) if images else np.zeros((0, channels, 1, 1), np.uint32)
    return np.stack([each.sum(axis=(0, 2, 3), dtype=np.uint64) for each in (numbers, numbers**2)])


def _pixel_statistics(sums: np.ndarray, *, count: int) -> dict[str, Any]:
    # From exact sums, so that they do not depend on the order of the images.
    totals, squares = sums.tolist()
    deviations = [math.sqrt(count * square - total**2) / count for total, square in zip(totals, squares, strict=True)]
    return {"pixel_mean": [total / count for total in totals], "pixel_std": deviations}


def _checked_moments(image: Any, *, name: str, expected: tuple[int, ...]) -> np.ndarray:
    """Return mean and deviation of an image as an array; refuse what the archive's reader would."""
    moments = np.asarray(image)
    if moments.dtype != np.float32 or moments.shape != expected:
        found = f"{name}: found {moments.dtype} {list(moments.shape)}"
        raise ValueError(f"{found}, expected float32 {list(expected)}, mean and deviation of latents")
    if not np.isfinite(moments).all() or moments[len(moments) // 2 :].min() < 0:
        fix = "Fix: check the autoencoder and its `latents`"
        raise ValueError(f"{name}: got NaN, infinity or a deviation below 0, expected latents. {fix}")
    return moments


def _moment_sums(images: Sequence[np.ndarray], *, channels: int) -> np.ndarray:
    """Return the sums of the means, and of the squares of draws, float64 [2, C]."""
    numbers = np.stack(images).astype(np.float64) if images else np.zeros((0, 2 * channels, 1, 1))
    means, deviations = numbers[:, :channels], numbers[:, channels:]
    return np.stack([each.sum(axis=(0, 2, 3)) for each in (means, means**2 + deviations**2)])


def _moment_statistics(sums: np.ndarray, *, count: int) -> dict[str, Any]:
    mean, square = sums / count
    return {"latent_mean": mean.tolist(), "latent_std": np.sqrt(np.maximum(square - mean**2, 0)).tolist()}


def _codec_of(dataset: Dataset) -> dict[str, Any]:
    codec = getattr(dataset, "codec", None)
    return {} if codec is None else {"codec": codec}


PIXELS = Form(
    ending=".png",
    shape=lambda dataset: (dataset.channels, dataset.resolution, dataset.resolution),
    checked=pixels_of.checked,
    encoded=pixels_of.png,
    opened=lambda path: ImageZip(source=path),
    sums=_pixel_sums,
    statistics=_pixel_statistics,
    about=lambda dataset: {},
)
LATENTS = Form(
    ending=".npy",
    shape=lambda dataset: (2 * dataset.channels, dataset.resolution, dataset.resolution),
    checked=_checked_moments,
    encoded=bytes_of,
    opened=lambda path: LatentZip(source=path),
    sums=_moment_sums,
    statistics=_moment_statistics,
    about=_codec_of,
)
