"""One picture of a dataset archive: checked against the format, and encoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor


def checked(picture: Tensor | np.ndarray, *, name: str, expected: tuple[int, ...] | None) -> np.ndarray:
    """Return a picture as an array that EDM's reader takes.

    Args:
        picture: Pixels.
        name: What messages call it.
        expected: The shape of the others, or None for the first.

    Raises:
        ValueError: It is not uint8 [C, H, W] with 1 or 3 channels, no square whose side is a power of two, or unlike
            the others.
    """
    pixels = np.asarray(picture)
    found = f"{name}: found {pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"{found}, expected uint8 [C, H, W] with 1 or 3 channels; convert the pictures first")
    _, height, width = pixels.shape
    if height != width or height & (height - 1) or not height:
        raise ValueError(f"{found}, expected a square whose side is a power of two; crop or scale the pictures first")
    if expected is not None and pixels.shape != expected:
        raise ValueError(f"{found}, but the pictures before it are {list(expected)}; bring all to one shape first")
    return pixels


def png(pixels: np.ndarray) -> bytes:
    """Encode one picture, uint8 [C, H, W], as an uncompressed PNG."""
    content = io.BytesIO()
    as_image(pixels).save(content, format="png", compress_level=0, optimize=False)
    return content.getvalue()


def as_image(pixels: np.ndarray) -> Image.Image:
    """Return pixels, uint8 [C, H, W] with 1 or 3 channels, as a picture of Pillow."""
    grey_or_rgb = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(grey_or_rgb))
