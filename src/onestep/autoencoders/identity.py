"""No autoencoder: networks compute in pixel space, scaled to [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from onestep.data import to_images, to_pixels

__all__ = ["Identity"]

_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Identity:
    """EDM's scaling: x / 127.5 - 1, and x * 127.5 + 128, clipped to [0, 255] and truncated."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Return pixels, uint8, as float32 in [-1, 1]."""
        return to_images(pixels)

    def decode(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1] as uint8 of the same shape; float64 is quantized in float64."""
        if images.ndim == 4 and images.shape[1] not in _CHANNELS:
            found = f"got {images.shape[1]} channels, expected 1 or 3 of pixels"
            raise ValueError(f"images: {found}, without a codec. Fix: give the one of the run (--codec)")
        return to_pixels(images)
