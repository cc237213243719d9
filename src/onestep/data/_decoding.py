"""From a picture file that anybody may have made to grey or colour pixels, or to the reason why not."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

# By content, whatever the name says: ImageNet has a PNG called JPEG. Others are left out, because Pillow runs programs
# for some (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_TO_RGB = frozenset({"CMYK", "YCbCr", "P", "RGBX"})
_WITH_ALPHA = frozenset({"RGBA", "LA", "PA"})
_OPAQUE = 255


def decode(content: bytes) -> np.ndarray:
    """Return a picture's pixels: uint8 [H, W] (grey) or [H, W, 3] (RGB).

    CMYK, YCbCr and palettes are converted, an alpha channel that hides nothing is dropped.

    Raises:
        ValueError: The file is damaged, or no single picture of 8 bits a channel; the message is a few words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that nobody reads
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                return np.array(_grey_or_rgb(picture))
        except _Refused as refused:
            raise ValueError(str(refused)) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"it is too large: {error}") from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(f"it is no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file") from error
        except Exception as error:  # a decoder may raise anything when it is given anything
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"it cannot be decoded: {reason or type(error).__name__}") from error


class _Refused(Exception):
    """A picture is whole, but not of the kind that is read."""


def _grey_or_rgb(picture: Image.Image) -> Image.Image:
    # A camera's MPO holds a preview beside the picture, which comes first.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise _Refused(f"it is an animation of {picture.n_frames} frames")
    picture.load()
    if "transparency" in picture.info:
        picture = picture.convert("LA" if picture.mode == "L" else "RGBA")
    if picture.mode in _WITH_ALPHA:
        if picture.getchannel("A").getextrema()[0] < _OPAQUE:
            raise _Refused("it is transparent in places; lay it on a ground first")
        return picture.convert("L" if picture.mode == "LA" else "RGB")
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode in _TO_RGB:
        # Differs from the reference: there the four channels of CMYK are taken for three, which garbles the picture.
        return picture.convert("RGB")
    if picture.mode not in ("L", "RGB"):
        raise _Refused(f"its colour mode is {picture.mode}, expected 8 bits of grey, RGB, CMYK or a palette")
    return picture
