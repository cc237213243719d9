"""The contact sheet of a dataset: a PNG of its first images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onestep.data._pixels import picture_of
from onestep.data.image_zip import ImageZip
from onestep.files import replacing

_ROWS, _COLUMNS = 16, 16


def write_contact_sheet(path: Path, archive: ImageZip) -> None:
    """Write a PNG of the first images of each class: 16 of each of up to 16 classes, evenly spread.

    Unlabelled images fill the rows, evenly spread over the archive.
    """
    if archive.classes:
        shown = _spread(archive.classes, most=_ROWS)
        rows = [np.flatnonzero(archive.labels() == label)[:_COLUMNS] for label in shown]
    else:
        shown = _spread(len(archive), most=_ROWS * _COLUMNS)
        rows = [shown[start : start + _COLUMNS] for start in range(0, len(shown), _COLUMNS)]
    side = archive.resolution
    sheet = np.zeros((archive.channels, len(rows) * side, max(map(len, rows)) * side), np.uint8)
    for top, row in enumerate(rows):
        for left, index in enumerate(row):
            sheet[:, top * side : (top + 1) * side, left * side : (left + 1) * side] = archive[int(index)][0]
    with replacing(path) as temporary:
        picture_of(sheet).save(temporary, format="png")


def _spread(count: int, *, most: int) -> np.ndarray:
    """Return at most `most` of the numbers below `count`, evenly spread."""
    shown = min(count, most)
    return np.arange(shown) * count // shown
