"""Mean squared difference of pixels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from onestep.distances._pixels import PixelDistance
from onestep.objectives import Networks

__all__ = ["L2"]


@dataclass(frozen=True, kw_only=True)
class L2(PixelDistance):
    """The mean over channels and pixels of the squared difference, as in consistency models (arXiv:2303.01469)."""

    def __call__(self, images: Tensor, target: Tensor, *, networks: Networks) -> Tensor:
        """Return the distances [B]; see `onestep.distances.Distance`."""
        return self.difference(images, target).square().mean(dim=1)
