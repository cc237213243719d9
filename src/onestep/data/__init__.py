"""The dataset contract, and the conversion between pixels and images.

Legend: N images of a dataset, B of a batch; C H W an image; K classes. `pixels` are uint8 in 0..255, `images` are
float32 in [-1, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor  # preparing a dataset needs no torch, whose import takes longer than 2,000 images


class Dataset(Protocol):
    """Square images of one shape, each with a class: pixels uint8 [N, C, H, W] by index.

    `onestep prepare` builds a dataset from the options of its block in config.yaml and the keyword `source`, the path
    of its input. Training reads the archive that it writes; the condition of a network is the one-hot class,
    float32 [B, K], or None for an unlabelled dataset. A class outside this package is named `my_module:MyDataset`.

    A dataset of latents has the class attribute `latents`, True: its images are float32 [2 C, H, W], the mean of C
    channels and their deviation, and its `codec` states what made them, if that is known (`LatentCodec.origin`).
    """

    resolution: int  # H and W, a power of two
    channels: int  # C: 1 (grey) or 3 (RGB)
    classes: int  # K, the number of classes; 0 for an unlabelled dataset (every class is then 0)
    class_names: tuple[str, ...]  # in order; empty if the source has none
    unreadable_share: float  # largest share of the images, in [0, 1], that may be unreadable and left out

    def __len__(self) -> int:
        """Return N."""
        ...

    def __getitem__(self, index: int) -> tuple[np.ndarray | Tensor, int]:
        """Return the pixels of one image, uint8 [C, H, W], and its class, in 0..K - 1; or raise `UnreadableImage`."""
        ...


class UnreadableImage(ValueError):
    """One image of a dataset cannot be used: its name in the source, and the cause in a few words; others may be."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def to_images(pixels: Tensor) -> Tensor:
    """Return pixels, uint8, as images, float32 in [-1, 1] (EDM: x / 127.5 - 1)."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Return images as pixels, uint8: x * 127.5 + 128, clipped to [0, 255] and truncated (EDM).

    float64 images are quantized in float64.
    """
    return (images * 127.5 + 128).clip(0, 255).byte()
