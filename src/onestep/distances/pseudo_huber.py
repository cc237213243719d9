"""Pseudo-Huber distance of pixels: squared for small differences, their norm for large ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from onestep.config.constraints import Positive, Width
from onestep.distances import at_size
from onestep.objectives import Networks, Origin

__all__ = ["PseudoHuber"]


@dataclass(frozen=True, kw_only=True)
class PseudoHuber:
    """sqrt(|x - y|^2 + c^2) - c with the Euclidean norm over channels and pixels (arXiv:2310.14189, section 3.3).

    Attributes:
        constant: c divided by the square root of the number of entries of an image.
        resolution: Pixels of a side to which both images are resized first; None leaves them as they are.
    """

    constant: Positive = 0.00054  # the same section
    resolution: Width | None = None

    def networks(self) -> Mapping[str, Origin]:
        """Return none."""
        return {}

    def __call__(self, images: Tensor, target: Tensor, *, networks: Networks) -> Tensor:
        """Return the distances [B]; see `onestep.distances.Distance`."""
        difference = (at_size(images, self.resolution) - at_size(target, self.resolution)).flatten(1)
        c = self.constant * math.sqrt(difference.shape[1])
        return (difference.square().sum(dim=1) + c**2).sqrt() - c
