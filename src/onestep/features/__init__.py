"""The contract of a feature extractor: pixels to vectors, the space in which images are compared.

Legend: B images, C H W an image, D feature width, K classes. `pixels` are uint8.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Features(NamedTuple):
    """Features of a batch.

    Attributes:
        features: float32 [B, D].
        probabilities: float32 [B, K], rows sum to 1; None where the network does not classify.
    """

    features: Tensor
    probabilities: Tensor | None


class Extractor(Protocol):
    """What the files of this folder hold."""

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features of pixels, uint8 [B, C, H, W]. Does not depend on the batch size."""
        ...
