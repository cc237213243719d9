"""Features of FD-DINOv2: the class token of DINOv2 ViT-L/14, as dgm-eval computes it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.features import Features
from onestep.features._arithmetic import Precision, computing
from onestep.features._pixels import IMAGENET_MEAN, IMAGENET_STD, normalised, resized_by_pillow, rgb_parts
from onestep.features._timm_networks import Weights, load_timm_network

__all__ = ["DinoFeatures"]

_NETWORK, _SIZE = "vit_large_patch14_dinov2", 224
_POSITIONS = "pos_embed"


class DinoFeatures:
    """Meta's DINOv2 ViT-L/14 (arXiv:2304.07193) after its last norm, 1,024 wide: FD-DINOv2 of arXiv:2306.04675.

    dgm-eval resizes to 224 x 224 by Pillow's bicubic filter and rounds to uint8. The position embeddings of 37 x 37
    patches become 16 x 16 as in Meta's own code, not as in timm's, which would smooth them and give other numbers.
    """

    def __init__(self, *, weights: Path, precision: Precision = "float32") -> None:
        """Read the network.

        Args:
            weights: Meta's `dinov2_vitl14_pretrain.pth`, or `timm/vit_large_patch14_dinov2.lvd142m`.
            precision: float32 is the reported path; numbers by another are marked.

        Raises:
            ValueError: The file does not hold the network.
        """
        self._network = load_dinov2(weights, name=_NETWORK)
        self._precision = precision

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, 1024] of pixels, uint8 [B, 3 or 1, H, W], on the pixels' device.

        Raises:
            ValueError: The pixels are not uint8, or of another shape.
        """
        self._network.to(pixels.device)
        parts = [dinov2_features(self._network, part, self._precision) for part in rgb_parts(pixels)]
        return Features(features=torch.cat(parts), probabilities=None)


def load_dinov2(path: Path, *, name: str) -> nn.Module:
    """Read one of the DINOv2 transformers without registers for images of 224 x 224.

    Raises:
        ValueError: The file does not hold it.
    """
    options = {"num_classes": 0, "img_size": _SIZE}
    return load_timm_network(path, name=name, convert=_for_smaller_images, options=options)


def dinov2_features(network: nn.Module, pixels: Tensor, precision: Precision) -> Tensor:
    """Return the class token, float32 [B, D], of uint8 RGB pixels [B, 3, H, W]."""
    resized = resized_by_pillow(pixels, height=_SIZE, width=_SIZE)
    images = normalised(resized, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with computing(precision, device=pixels.device):
        return network(images).to(torch.float32)


def _for_smaller_images(weights: Weights, network: nn.Module) -> Weights:
    """Leave out the token of masked patches, which only training uses, and resample the positions."""
    converted = {name: tensor for name, tensor in weights.items() if name != "mask_token"}
    side = network.patch_embed.grid_size[0]
    converted[_POSITIONS] = resampled_positions(converted[_POSITIONS], side=side)
    return converted


def resampled_positions(positions: Tensor, *, side: int) -> Tensor:
    """Return position embeddings [1, 1 + side^2, D] from those of another square grid, the class token's first.

    Bicubic without smoothing, and sampled at steps of n / (side + 0.1) from the top left: what
    facebookresearch/dinov2 does (`interpolate_offset` 0.1) and what its published numbers contain.
    """
    length = round((positions.shape[1] - 1) ** 0.5)
    if length == side:
        return positions
    token, grid = positions[:, :1], positions[:, 1:].reshape(1, length, length, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / length
    resampled = F.interpolate(grid.float(), scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([token, resampled.permute(0, 2, 3, 1).flatten(1, 2).to(token.dtype)], dim=1)
