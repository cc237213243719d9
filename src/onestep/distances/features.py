"""Distance in the features of a backbone of the pipeline: LPIPS with unit weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from onestep.config.constraints import Name, Width
from onestep.distances._maps import differences
from onestep.objectives import FeatureNetwork, Networks, Origin

__all__ = ["FeatureDistance"]

_ROLE = "distance"


@dataclass(frozen=True, kw_only=True)
class FeatureDistance:
    """The form of LPIPS (arXiv:1801.03924, eq. 1) on another network, where no linear layers were trained.

    The squared differences of the four normalized feature maps are summed over channels, averaged over pixels and
    summed over maps, with weight 1 where LPIPS has trained weights. It takes the place of LPIPS where its networks are
    not at hand, as in the demo: a choice of this project, not of the papers.

    Attributes:
        backbone: Entry of `backbones`. If a discriminator has the same one, both losses use the same features.
        resolution: Pixels of a side to which images are resized for the backbone; None leaves them as they are.
    """

    backbone: Name
    resolution: Width | None = None

    def networks(self) -> Mapping[str, Origin]:
        """Return the backbone."""
        return {_ROLE: FeatureNetwork(name=self.backbone)}

    def __call__(self, images: Tensor, target: Tensor, *, networks: Networks) -> Tensor:
        """Return the distances [B]; see `onestep.distances.Distance`."""
        maps, wanted = (networks[_ROLE](each, size=self.resolution) for each in (images, target))
        return reduce(torch.add, [each.sum(dim=1).mean(dim=(1, 2)) for each in differences(maps, wanted)])
