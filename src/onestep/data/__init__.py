"""The contract of a dataset, and the two places where pixels and images meet.

Legend: B images, C H W an image. `pixels` are uint8, `images` are float32 in [-1, 1].
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Dataset(Protocol):
    """What the files of this folder hold: square pictures with a class each, by index.

    Attributes:
        resolution: H and W, a power of two.
        channels: C: 1 (grey) or 3 (RGB).
        classes: The number of classes; 0 where the pictures carry no labels (every label is then 0).
        class_names: What the source calls them, in order; empty where it has no names for them.
        unreadable_share: Largest share of the pictures that may turn out unreadable; the others are left out then.
    """

    resolution: int
    channels: int
    classes: int
    class_names: tuple[str, ...]
    unreadable_share: float

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the pixels of one picture, uint8 [C, H, W], and its class.

        Raises:
            UnreadablePicture: This one cannot be used, and that says nothing about the others.
        """
        ...


class UnreadablePicture(ValueError):
    """One picture of a dataset cannot be used.

    Attributes:
        name: What the source calls it.
        reason: Why, in a few words.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def to_images(pixels: Tensor) -> Tensor:
    """Return pixels, uint8, as images: float32 in [-1, 1] (EDM: x / 127.5 - 1)."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Return images as pixels, uint8: x * 127.5 + 128, clipped to [0, 255], the fraction cut off (EDM).

    float64 images are quantised in float64.
    """
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
