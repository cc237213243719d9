"""How pictures of any shape become squares: EDM's two transforms of dataset archives."""

from __future__ import annotations

import numpy as np
from PIL import Image


def scale(pixels: np.ndarray, *, resolution: int) -> np.ndarray:
    """Resize a picture straight to a square with the Lanczos filter; its proportions are not kept.

    Args:
        pixels: uint8 [H, W] (grey) or [H, W, 3] (RGB).
        resolution: Height and width of the result.

    Returns:
        uint8 [resolution, resolution], with the axis of channels if `pixels` has one.

    Raises:
        ValueError: `pixels` has another shape or type.
    """
    _check(pixels)
    picture = Image.fromarray(pixels).resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.array(picture)


def center_crop(pixels: np.ndarray, *, resolution: int) -> np.ndarray:
    """Cut the largest square from a picture's centre and resize it; a grey picture becomes RGB.

    Args:
        pixels: uint8 [H, W] (grey) or [H, W, 3] (RGB).
        resolution: Height and width of the result.

    Returns:
        uint8 [resolution, resolution, 3].

    Raises:
        ValueError: `pixels` has another shape or type.
    """
    _check(pixels)
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if square.ndim == 2:
        square = np.repeat(square[:, :, None], 3, axis=2)
    return scale(square, resolution=resolution)


def _check(pixels: np.ndarray) -> None:
    """Refuse what Pillow would misread, CMYK and transparency among it."""
    grey_or_rgb = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not grey_or_rgb:
        raise ValueError(
            f"a picture must be uint8 [H, W] or [H, W, 3], found {pixels.dtype} {list(pixels.shape)}; "
            "convert it to grey or RGB first"
        )
