"""Contract of distances between images, for losses that compare an image with a target.

Legend: B images, C H W an image. Images are float32 in about [-1, 1], [B, C, H, W]; generated ones carry a gradient,
targets do not. A distance is 0 for equal images, and lower is closer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from onestep.discriminators._resize import resized
from onestep.objectives import Networks, Origin

__all__ = ["Distance", "at_size"]


class Distance(Protocol):
    """The class of each file in this folder: a frozen dataclass of options."""

    def networks(self) -> Mapping[str, Origin]:
        """Return the frozen networks that it compares with, by role; the objective adds them to its own."""
        ...

    def __call__(self, images: Tensor, target: Tensor, *, networks: Networks) -> Tensor:
        """Return the distance of each image to its target [B]; `networks` has those of `networks()` by role."""
        ...


def at_size(images: Tensor, size: int | None) -> Tensor:
    """Return images resized to `size` x `size` pixels (bilinear, corners not aligned); as they are for None."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    return resized(images, size=(size, size), align_corners=False)
