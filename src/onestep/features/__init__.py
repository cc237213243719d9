"""Contract of feature extractors: from pixels to the vectors that metrics compare.

Legend: B images, C H W an image, D feature width, K classes. `pixels` are uint8.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from onestep.arithmetic import Precision, computing

__all__ = ["Extractor", "Features", "Precision", "computing"]


class Features(NamedTuple):
    """Features of a batch."""

    features: Tensor  # float32 [B, D]
    probabilities: Tensor | None  # float32 [B, K], rows sum to 1; None if the network is not a classifier


class Extractor(Protocol):
    """An instance of a class of this folder.

    The constructor takes keyword arguments: `weights`, the path of the network's file, and its own options. A
    `precision` other than float32 is marked in tables. ValueError: the file does not hold the network.
    """

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features of pixels, uint8 [B, C, H, W], on their device, independently of the batch size.

        ValueError: the pixels have another type or shape.
        """
        ...
