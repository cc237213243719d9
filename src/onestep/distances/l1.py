"""Mean absolute difference of pixels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from onestep.distances._pixels import PixelDistance
from onestep.objectives import Networks

__all__ = ["L1"]


@dataclass(frozen=True, kw_only=True)
class L1(PixelDistance):
    """The mean over channels and pixels of the absolute difference, as in consistency models (arXiv:2303.01469)."""

    def __call__(self, images: Tensor, target: Tensor, *, networks: Networks) -> Tensor:
        """Return the distances [B]; see `onestep.distances.Distance`."""
        return self.difference(images, target).abs().mean(dim=1)
