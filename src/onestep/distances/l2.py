"""Mean squared difference of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from onestep.config.constraints import Width
from onestep.distances import at_size
from onestep.objectives import Networks, Origin

__all__ = ["L2"]


@dataclass(frozen=True, kw_only=True)
class L2:
    """The mean over channels and pixels of the squared difference, as in consistency models (arXiv:2303.01469).

    Attributes:
        resolution: Pixels of a side to which both images are resized first; None leaves them as they are.
    """

    resolution: Width | None = None

    def networks(self) -> Mapping[str, Origin]:
        """Return none."""
        return {}

    def __call__(self, images: Tensor, target: Tensor, *, networks: Networks) -> Tensor:
        """Return the distances [B]; see `onestep.distances.Distance`."""
        return (at_size(images, self.resolution) - at_size(target, self.resolution)).square().flatten(1).mean(dim=1)
