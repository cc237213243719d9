"""Images side by side, as a PNG that stands inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from onestep.report.evidence import Samples


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG as a data URI, with its size in image pixels."""

    uri: str
    width: int
    height: int


def shared_seeds(samples: Sequence[Samples | None], *, count: int) -> list[int]:
    """Return the first `count` seeds that every row drew, ascending."""
    drawn = [set(each.seeds.tolist()) for each in samples if each is not None]
    return sorted(set.intersection(*drawn))[:count] if drawn else []


def pick(samples: Samples, *, seeds: Sequence[int]) -> np.ndarray:
    """Return the images of `seeds`, uint8 [N, H, W, C], in that order.

    Raises:
        ValueError: A seed was not drawn.
    """
    places = {seed: place for place, seed in enumerate(samples.seeds.tolist())}
    missing = [seed for seed in seeds if seed not in places]
    if missing:
        raise ValueError(f"no image of seed {missing[0]} among the samples; sample the block again to rebuild it")
    return samples.pixels[[places[seed] for seed in seeds]]


def sheet_shape(resolution: int, *, width: int) -> tuple[int, int]:
    """Return columns and rows of a sheet about `width` wide: 16 x 8 for small images, fewer for large ones."""
    return min(16, max(4, width // resolution)), min(8, max(3, width // 3 // resolution))


def contact_sheet(pixels: np.ndarray, *, columns: int, width: int) -> Picture:
    """Return images side by side with transparent gaps, enlarged by a whole factor to at least `width` pixels.

    Args:
        pixels: uint8 [N, H, W, C], C is 1 or 3.
        columns: Images in a row of the sheet.
        width: Least width in pixels; a larger sheet is left as it is.
    """
    count, height, image_width, channels = pixels.shape
    gap = max(1, image_width // 16)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (image_width + gap) - gap, channels + 1), np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (image_width + gap)
        sheet[top : top + height, left : left + image_width, :channels] = image
        sheet[top : top + height, left : left + image_width, channels] = 255
    factor = max(1, -(-width // sheet.shape[1]))
    return _encode(sheet.repeat(factor, axis=0).repeat(factor, axis=1))


def _encode(sheet: np.ndarray) -> Picture:
    """Return uint8 [H, W, 2] (gray and alpha) or [H, W, 4] as a PNG."""
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(uri=uri, width=sheet.shape[1], height=sheet.shape[0])
