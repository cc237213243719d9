"""LPIPS on VGG-16 (Zhang et al., arXiv:1801.03924), with the published linear layers of version 0.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType

import torch
from torch import Tensor

from onestep.config.constraints import Name, Width
from onestep.distances._maps import differences
from onestep.objectives import FeatureNetwork, Networks, Origin

__all__ = ["Lpips"]

_TRUNK, _LINEAR = "distance", "distance_linear"
# The last activation before each pooling of VGG-16: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3, and their channels.
_STRIDES, _CHANNELS = (1, 2, 4, 8, 16), (64, 128, 256, 512, 512)
_SHAPES = MappingProxyType({f"lin{place}.model.1.weight": (1, each, 1, 1) for place, each in enumerate(_CHANNELS)})


@dataclass(frozen=True, kw_only=True)
class Lpips:
    """Weighted squared differences of five normalized feature maps: mean over pixels, sum over maps (eq. 1).

    Attributes:
        trunk: Entry of `backbones` with torchvision's VGG-16, `{timm: vgg16.tv_in1k, input: ...}`.
        linear: Entry of `backbones` with the linear layers alone, `{input: ...}` with `{published: lpips-vgg}`.
        resolution: Pixels of a side to which images are resized first, as in D2O's instance losses; None leaves them as
            they are.
    """

    trunk: Name
    linear: Name
    resolution: Width | None = 224

    def networks(self) -> Mapping[str, Origin]:
        """Return the trunk and the linear layers."""
        linear = FeatureNetwork(name=self.linear, shapes=_SHAPES)
        return {_TRUNK: FeatureNetwork(name=self.trunk, strides=_STRIDES), _LINEAR: linear}

    def layers(self, images: Tensor, target: Tensor, *, networks: Networks) -> list[Tensor]:
        """Return the part of each of the five maps in the distances, from fine to coarse, each [B]."""
        maps, wanted = (networks[_TRUNK](each, size=self.resolution) for each in (images, target))
        linear = networks[_LINEAR]()
        squares = zip(differences(maps, wanted), _SHAPES, strict=True)
        return [(each * linear[name]).sum(dim=1).mean(dim=(1, 2)) for each, name in squares]

    def __call__(self, images: Tensor, target: Tensor, *, networks: Networks) -> Tensor:
        """Return the distances [B]; see `onestep.distances.Distance`."""
        return reduce(torch.add, self.layers(images, target, networks=networks))
