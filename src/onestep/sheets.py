"""Sheets of images: of samples, of a training's grids, of the results page. Imports neither torch nor matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def tiled(images: Sequence[np.ndarray] | np.ndarray, *, columns: int, gap: int, ground: int) -> np.ndarray:
    """Return images, uint8 [H, W, C] of one shape, row by row on one sheet, uint8 [H, W, C].

    `gap` pixels between them, and what is left of the last row, have the value `ground`.
    """
    height, width, channels = images[0].shape
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), ground, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
