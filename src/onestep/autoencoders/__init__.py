"""The contract of a codec: the map between pixels and the space in which the networks train and sample.

Legend: `pixels` are uint8 [B, C, H, W]; `images` are float32 [B, C', H', W'], the input of denoisers, about [-1, 1].
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """The class of each file in this folder."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Return pixels as images, on the same device."""
        ...

    def decode(self, images: Tensor) -> Tensor:
        """Return images, float32 or float64, as pixels, on the same device."""
        ...
