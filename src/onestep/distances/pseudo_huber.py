"""Pseudo-Huber distance of pixels: squared for small differences, their norm for large ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from onestep.config.constraints import Positive
from onestep.distances._pixels import PixelDistance
from onestep.objectives import Networks

__all__ = ["PseudoHuber"]


@dataclass(frozen=True, kw_only=True)
class PseudoHuber(PixelDistance):
    """sqrt(|x - y|^2 + c^2) - c with the Euclidean norm over channels and pixels (arXiv:2310.14189, section 3.3).

    Attributes:
        constant: c divided by the square root of the number of entries of an image.
    """

    constant: Positive = 0.00054  # the same section

    def __call__(self, images: Tensor, target: Tensor, *, networks: Networks) -> Tensor:
        """Return the distances [B]; see `onestep.distances.Distance`."""
        difference = self.difference(images, target)
        c = self.constant * math.sqrt(difference.shape[1])
        return (difference.square().sum(dim=1) + c**2).sqrt() - c
