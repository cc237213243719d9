"""One image: decoded from a file of any origin, made square by EDM's transforms, checked, encoded as PNG."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from onestep.data.image_zip import ImageZip
from onestep.files import replacing

# Recognized by content, not by name: ImageNet has a PNG named .JPEG. No others, because Pillow runs programs for some
# (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_TO_RGB = frozenset({"CMYK", "YCbCr", "P", "RGBX"})
_WITH_ALPHA = frozenset({"RGBA", "LA", "PA"})

_SHEET_ROWS, _SHEET_COLUMNS = 16, 16


def decode(content: bytes) -> np.ndarray:
    """Return the pixels of an image file: uint8 [H, W] (grey) or [H, W, 3] (RGB).

    CMYK, YCbCr and palettes are converted; a fully opaque alpha channel is dropped. A damaged file, or one that is not
    a single image of 8 bits a channel, is a ValueError of a few words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that is not used
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                return np.array(_grey_or_rgb(picture))
        except _Refused:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"it is too large: {error}") from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(f"it is no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file") from error
        except Exception as error:  # a decoder may raise anything on a damaged file
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"it cannot be decoded: {reason or type(error).__name__}") from error


class _Refused(ValueError):
    """An intact image of an unsupported kind."""


def _grey_or_rgb(picture: Image.Image) -> Image.Image:
    # A camera's MPO holds a preview after the image.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise _Refused(f"it is an animation of {getattr(picture, 'n_frames', 1)} frames")
    picture.load()
    if "transparency" in picture.info:
        picture = picture.convert("LA" if picture.mode == "L" else "RGBA")
    if picture.mode in _WITH_ALPHA:
        if np.array(picture.getchannel("A")).min() < 255:
            raise _Refused("it is transparent in places; flatten it first")
        return picture.convert("L" if picture.mode == "LA" else "RGB")
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode in _TO_RGB:
        # Differs from the reference: there the four channels of CMYK are taken for three, which garbles the image.
        return picture.convert("RGB")
    if picture.mode not in ("L", "RGB"):
        raise _Refused(f"its colour mode is {picture.mode}, expected 8 bits of grey, RGB, CMYK or a palette")
    return picture


def scale(pixels: np.ndarray, *, resolution: int) -> np.ndarray:
    """Resize uint8 [H, W] (grey) or [H, W, 3] (RGB) to a square by the Lanczos filter, in other proportions (EDM)."""
    if pixels.dtype != np.uint8 or (pixels.ndim != 2 and pixels.shape[2:] != (3,)):
        # Pillow would misread CMYK or transparency.
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"an image must be uint8 [H, W] or [H, W, 3], found {found}; convert it to grey or RGB first")
    return np.array(Image.fromarray(pixels).resize((resolution, resolution), Image.Resampling.LANCZOS))


def center_crop(pixels: np.ndarray, *, resolution: int) -> np.ndarray:
    """Crop the largest centred square and resize it; grey becomes RGB: uint8 [resolution, resolution, 3] (EDM)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if square.ndim == 2:
        square = np.repeat(square[:, :, None], 3, axis=2)
    return scale(square, resolution=resolution)


def checked(image: Tensor | np.ndarray, *, name: str, expected: tuple[int, ...]) -> np.ndarray:
    """Return an image as an array; refuse one that does not fit the archive or the dataset's `expected` [C, H, W]."""
    pixels = np.asarray(image)
    found = f"{name}: found {pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"{found}, expected uint8 [C, H, W] with 1 or 3 channels; convert the images first")
    height, width = pixels.shape[1:]
    if height != width or height.bit_count() != 1:
        raise ValueError(f"{found}, expected a square whose side is a power of two; crop or scale the images first")
    if pixels.shape != expected:
        raise ValueError(f"{found}, expected the dataset's {list(expected)}. Fix: scale all images to one shape")
    return pixels


def png(pixels: np.ndarray) -> bytes:
    """Encode pixels, uint8 [C, H, W], as an uncompressed PNG."""
    content = io.BytesIO()
    _picture(pixels).save(content, format="png", compress_level=0, optimize=False)
    return content.getvalue()


def write_contact_sheet(path: Path, archive: ImageZip) -> None:
    """Write a PNG of the first images of each class: 16 of each of up to 16 classes, evenly spread.

    Unlabelled images fill the rows, evenly spread over the archive.
    """
    if archive.classes:
        shown = _spread(archive.classes, most=_SHEET_ROWS)
        rows = [np.flatnonzero(archive.labels() == label)[:_SHEET_COLUMNS] for label in shown]
    else:
        shown = _spread(len(archive), most=_SHEET_ROWS * _SHEET_COLUMNS)
        rows = [shown[start : start + _SHEET_COLUMNS] for start in range(0, len(shown), _SHEET_COLUMNS)]
    side = archive.resolution
    sheet = np.zeros((archive.channels, len(rows) * side, max(map(len, rows)) * side), np.uint8)
    for top, row in enumerate(rows):
        for left, index in enumerate(row):
            sheet[:, top * side : (top + 1) * side, left * side : (left + 1) * side] = archive[int(index)][0].numpy()
    with replacing(path) as temporary:
        _picture(sheet).save(temporary, format="png")


def _spread(count: int, *, most: int) -> np.ndarray:
    """Return at most `most` of the numbers below `count`, evenly spread."""
    shown = min(count, most)
    return np.arange(shown) * count // shown


def _picture(pixels: np.ndarray) -> Image.Image:
    """Return pixels, uint8 [C, H, W] with 1 or 3 channels, as an image of Pillow."""
    grey_or_rgb = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(grey_or_rgb))
