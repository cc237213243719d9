"""What distances of pixels share: the size at which they compare, and no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from onestep.config.constraints import Width
from onestep.distances import at_size
from onestep.objectives import Origin


@dataclass(frozen=True, kw_only=True)
class PixelDistance:
    """The options of a distance of pixels.

    Attributes:
        resolution: Pixels of a side to which both images are resized first; None leaves them as they are.
    """

    resolution: Width | None = None

    def networks(self) -> Mapping[str, Origin]:
        """Return none."""
        return {}

    def difference(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the difference of each entry of the images [B, C H W]."""
        return (at_size(images, self.resolution) - at_size(target, self.resolution)).flatten(1)
