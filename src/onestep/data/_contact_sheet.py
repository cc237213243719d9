"""A dataset at a glance: some pictures of it in one PNG, a class a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onestep.data._png import as_image
from onestep.data.image_zip import ImageZip
from onestep.files import replacing

_ROWS, _COLUMNS = 16, 16


def write_contact_sheet(path: Path, archive: ImageZip, *, labels: np.ndarray) -> None:
    """Write the first pictures of each class, up to 16 of up to 16 classes that are evenly spread.

    Pictures without labels fill the rows, evenly spread over the archive.

    Args:
        path: The sheet, `.png`.
        archive: The pictures.
        labels: Their classes, int64 [N].
    """
    rows = _by_class(labels, classes=archive.classes) if archive.classes else _all_over(len(archive))
    side = archive.resolution
    sheet = np.zeros((archive.channels, len(rows) * side, max(map(len, rows)) * side), np.uint8)
    for top, row in enumerate(rows):
        for left, index in enumerate(row):
            sheet[:, top * side : (top + 1) * side, left * side : (left + 1) * side] = archive[int(index)][0].numpy()
    with replacing(path) as temporary:
        as_image(sheet).save(temporary, format="png")


def _by_class(labels: np.ndarray, *, classes: int) -> list[np.ndarray]:
    return [np.flatnonzero(labels == label)[:_COLUMNS] for label in _spread(classes, most=_ROWS)]


def _all_over(count: int) -> list[np.ndarray]:
    chosen = np.array(_spread(count, most=_ROWS * _COLUMNS))
    return [chosen[start : start + _COLUMNS] for start in range(0, len(chosen), _COLUMNS)]


def _spread(count: int, *, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spread."""
    shown = min(count, most)
    return [position * count // shown for position in range(shown)]
