"""Features of CLIP-FID: the image embedding of CLIP ViT-B/32, prepared as clean-fid prepares it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from onestep.features import Features
from onestep.features._arithmetic import Precision, computing
from onestep.features._pixels import covering_square, normalised, rgb_parts
from onestep.features._timm_networks import Weights, load_timm_network

__all__ = ["ClipFeatures"]

_NETWORK, _WIDTH, _SIZE = "vit_base_patch32_clip_quickgelu_224", 512, 224
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipFeatures:
    """OpenAI's CLIP ViT-B/32 (arXiv:2103.00020): the projected image embedding, 512 wide and not normalised.

    clean-fid (arXiv:2104.11222) resizes the shorter side to 224 by Pillow's bicubic filter, rounds to uint8 and cuts
    out the middle. Differs from the reference in one respect: clean-fid on CUDA computes in float16.
    """

    def __init__(self, *, weights: Path, precision: Precision = "float32") -> None:
        """Read the network.

        Args:
            weights: `timm/vit_base_patch32_clip_224.openai`, as safetensors under timm's names or as the `.bin` of
                open_clip, whose image part is taken. OpenAI's own `.pt` is a program and is refused.
            precision: float32 is the reported path; numbers by another are marked.

        Raises:
            ValueError: The file does not hold the network.
        """
        self._network = load_timm_network(
            weights, name=_NETWORK, convert=_under_timms_names, options={"num_classes": _WIDTH}
        )
        self._precision = precision

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, 512] of pixels, uint8 [B, 3 or 1, H, W], on the pixels' device.

        Raises:
            ValueError: The pixels are not uint8, or of another shape.
        """
        self._network.to(pixels.device)
        features = torch.cat([self._some(part) for part in rgb_parts(pixels)])
        return Features(features=features, probabilities=None)

    def _some(self, pixels: Tensor) -> Tensor:
        images = normalised(covering_square(pixels, size=_SIZE), mean=_MEAN, std=_STD)
        with computing(self._precision, device=pixels.device):
            return self._network(images).to(torch.float32)


def _under_timms_names(weights: Weights, network: nn.Module) -> Weights:
    """Return the image part of OpenAI's and open_clip's layout under timm's names; timm's own as it is."""
    if "visual.class_embedding" not in weights:
        return weights
    from timm.models.vision_transformer import checkpoint_filter_fn

    return checkpoint_filter_fn(dict(weights), network)
