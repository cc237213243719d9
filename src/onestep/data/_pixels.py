"""One image: decoded from a file of any origin, made square by EDM's transforms, checked, encoded as PNG."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

# No others, because Pillow runs programs for some (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_TO_RGB = frozenset({"CMYK", "YCbCr", "P", "RGBX"})
_WITH_ALPHA = frozenset({"RGBA", "LA", "PA"})

_BITS_PER_SAMPLE = 258  # tag of TIFF
_WITH_MAXIMUM = (b"P2", b"P3", b"P5", b"P6")  # PPM: format, width, height, largest number of a channel
_LONGEST_HEADER = 4096


def decode(content: bytes, *, formats: tuple[str, ...] = _FORMATS, convert: bool = True) -> np.ndarray:
    """Return the pixels of an image file: uint8 [H, W] (grey) or [H, W, 3] (RGB).

    The format is recognized by content, not by name: ImageNet has a PNG named .JPEG. CMYK, YCbCr and palettes are
    converted and a fully opaque alpha channel is dropped; without `convert`, pictures that need it are refused. A
    damaged file, or one that is not a single image of up to 8 bits a channel, is a ValueError of a few words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that is not used
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=formats) as picture:
                _check_kind(picture, content)
                if not convert and picture.mode not in ("L", "RGB"):
                    raise _Refused(f"its colour mode is {picture.mode}, expected L (grey) or RGB")
                return np.array(_grey_or_rgb(picture) if convert else picture)
        except _Refused:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"it is too large: {error}") from error
        except Image.UnidentifiedImageError as error:
            *others, last = formats
            raise ValueError(f"it is no {', '.join(others)}{' or ' if others else ''}{last} file") from error
        except Exception as error:  # a decoder may raise anything on a damaged file
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"it cannot be decoded: {reason or type(error).__name__}") from error


class _Refused(ValueError):
    """An intact image of an unsupported kind."""


def _check_kind(picture: Image.Image, content: bytes) -> None:
    """Refuse animations, and more bits of a channel than an archive has."""
    # A camera's MPO holds a preview after the image.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise _Refused(f"it is an animation of {getattr(picture, 'n_frames', 1)} frames")
    if (bits := _depth(picture, content)) > 8:
        raise _Refused(f"its colour mode is {picture.mode} of {bits} bits a channel, expected 8; convert it first")


def _depth(picture: Image.Image, content: bytes) -> int:
    """Return the bits of a channel from the file's header: Pillow cuts 16 bits to 8 in colour, and its mode is RGB."""
    if picture.format == "PNG":
        if content[12:16] != b"IHDR":
            raise _Refused("it does not begin with its header")
        return content[24]
    if picture.format == "TIFF":
        return int(np.max(picture.getexif().get(_BITS_PER_SAMPLE, 1)))  # one number, or one a channel
    if picture.format == "PPM" and content[:2] in _WITH_MAXIMUM:
        return int(re.sub(rb"#[^\r\n]*", b" ", content[:_LONGEST_HEADER]).split()[3]).bit_length()
    return 8


def _grey_or_rgb(picture: Image.Image) -> Image.Image:
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
    if pixels.shape[:2] == (resolution, resolution):
        return pixels  # as Pillow would
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
    picture_of(pixels).save(content, format="png", compress_level=0, optimize=False)
    return content.getvalue()


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Return pixels, uint8 [C, H, W] with 1 or 3 channels, as an image of Pillow."""
    grey_or_rgb = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(grey_or_rgb))
