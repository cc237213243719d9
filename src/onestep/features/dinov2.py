"""Features of FD-DINOv2: the class token of DINOv2 ViT-L/14, as computed by dgm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.features import Features, Precision
from onestep.features._networks import Weights, load_timm_network, normalised, resized_by_pillow, run_in_parts

__all__ = ["DinoFeatures"]

_NETWORK, _SIZE = "vit_large_patch14_dinov2", 224
_POSITIONS = "pos_embed"


class DinoFeatures:
    """Meta's DINOv2 ViT-L/14 (arXiv:2304.07193) after its last norm, of width 1,024: FD-DINOv2 of arXiv:2306.04675.

    dgm-eval resizes to 224 x 224 by Pillow's bicubic filter and rounds to uint8. The position embeddings of 37 x 37
    patches are resampled to 16 x 16 as in Meta's code; timm's resampling smooths them and gives other numbers.
    """

    def __init__(self, *, weights: Path, precision: Literal["float32", "tf32", "bfloat16"] = "float32") -> None:
        """Load Meta's `dinov2_vitl14_pretrain.pth`, or `timm/vit_large_patch14_dinov2.lvd142m`."""
        self.network = load_dinov2(weights, name=_NETWORK)
        self.precision = precision

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, 1024] of pixels, uint8 [B, 3 or 1, H, W]; see `onestep.features.Extractor`."""
        return Features(dinov2_features(self.network.to(pixels.device), pixels, self.precision), None)


def load_dinov2(path: Path, *, name: str) -> nn.Module:
    """Load a DINOv2 transformer without registers, for images of 224 x 224; ValueError if the file does not hold it."""
    return load_timm_network(path, name=name, convert=_for_smaller_images, num_classes=0, img_size=_SIZE)


def dinov2_features(network: nn.Module, pixels: Tensor, precision: Precision) -> Tensor:
    """Return the class token, float32 [B, D], of pixels, uint8 [B, 3 or 1, H, W]."""
    return run_in_parts(network, pixels, prepare=_prepared, precision=precision)


def _prepared(pixels: Tensor) -> Tensor:
    return normalised(resized_by_pillow(pixels, height=_SIZE, width=_SIZE))


def _for_smaller_images(weights: Weights, network: Any) -> Weights:
    """Remove the token of masked patches, which only training uses, and resample the position embeddings."""
    converted = {name: tensor for name, tensor in weights.items() if name != "mask_token"}
    converted[_POSITIONS] = resampled_positions(converted[_POSITIONS], side=network.patch_embed.grid_size[0])
    return converted


def resampled_positions(positions: Tensor, *, side: int) -> Tensor:
    """Resample the position embeddings of a square grid to [1, 1 + side^2, D]; the class token is the first.

    Bicubic without smoothing, at steps of n / (side + 0.1) from the top left, as facebookresearch/dinov2 computes them
    (`interpolate_offset` 0.1) for its published numbers.
    """
    length = round((positions.shape[1] - 1) ** 0.5)
    if length == side:
        return positions
    token, grid = positions[:, :1], positions[:, 1:].reshape(1, length, length, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / length
    resampled = F.interpolate(grid.float(), scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([token, resampled.permute(0, 2, 3, 1).flatten(1, 2).to(token.dtype)], dim=1)
