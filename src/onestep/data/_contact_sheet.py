"""The contact sheet of a dataset: a PNG of its first images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onestep.data._pixels import picture_of
from onestep.data.image_zip import ImageZip
from onestep.data.latent_zip import LatentZip
from onestep.files import replacing

_ROWS, _COLUMNS = 16, 16
_COLOURS = 3


def write_contact_sheet(path: Path, archive: ImageZip | LatentZip) -> None:
    """Write a PNG of the first images of each class: 16 of each of up to 16 classes, evenly spread.

    Unlabelled images fill the rows, evenly spread over the archive. Of latents, it has their first channels as colours.
    """
    if archive.classes:
        shown = _spread(archive.classes, most=_ROWS)
        rows = [np.flatnonzero(archive.labels() == label)[:_COLUMNS] for label in shown]
    else:
        shown = _spread(len(archive), most=_ROWS * _COLUMNS)
        rows = [shown[start : start + _COLUMNS] for start in range(0, len(shown), _COLUMNS)]
    side = archive.resolution
    channels = archive.channels if isinstance(archive, ImageZip) else _COLOURS
    sheet = np.zeros((channels, len(rows) * side, max(map(len, rows)) * side), np.uint8)
    for top, row in enumerate(rows):
        for left, index in enumerate(row):
            sheet[:, top * side : (top + 1) * side, left * side : (left + 1) * side] = _shown(archive, int(index))
    with replacing(path) as temporary:
        picture_of(sheet).save(temporary, format="png")


def _shown(archive: ImageZip | LatentZip, index: int) -> np.ndarray:
    """Return an image as pixels; of latents the means of the first channels, each from its least to its largest."""
    found = archive[index][0]
    if isinstance(archive, ImageZip):
        return found
    means = np.resize(found[: min(archive.channels, _COLOURS)], (_COLOURS, *found.shape[1:]))
    least, largest = means.min(axis=(1, 2), keepdims=True), means.max(axis=(1, 2), keepdims=True)
    return (255 * (means - least) / np.maximum(largest - least, np.float32(1e-12))).astype(np.uint8)


def _spread(count: int, *, most: int) -> np.ndarray:
    """Return at most `most` of the numbers below `count`, evenly spread."""
    shown = min(count, most)
    return np.arange(shown) * count // shown
