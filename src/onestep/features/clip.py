"""Features of CLIP-FID: the image embedding of CLIP ViT-B/32, with the preparation of clean-fid."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from onestep.features import Features
from onestep.features._networks import Weights, covering_square, load_timm_network, normalised, run_in_parts

__all__ = ["ClipFeatures"]

_NETWORK, _WIDTH, _SIZE = "vit_base_patch32_clip_quickgelu_224", 512, 224
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipFeatures:
    """OpenAI's CLIP ViT-B/32 (arXiv:2103.00020): the projected image embedding, of width 512 and not normalised.

    clean-fid (arXiv:2104.11222) resizes the shorter side to 224 by Pillow's bicubic filter, rounds to uint8 and crops
    the centre. Differs from the reference: clean-fid on CUDA computes in float16.
    """

    def __init__(self, *, weights: Path, precision: Literal["float32", "tf32", "bfloat16"] = "float32") -> None:
        """Load `timm/vit_base_patch32_clip_224.openai`: safetensors under timm's names, or the `.bin` of open_clip.

        Of the latter the image part is used. OpenAI's own `.pt` is a program and is refused.
        """
        self.network = load_timm_network(weights, name=_NETWORK, convert=_to_timms_names, num_classes=_WIDTH)
        self.precision = precision

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, 512] of pixels, uint8 [B, 3 or 1, H, W]; see `onestep.features.Extractor`."""
        network = self.network.to(pixels.device)
        return Features(run_in_parts(network, pixels, prepare=_prepared, precision=self.precision), None)


def _prepared(pixels: Tensor) -> Tensor:
    return normalised(covering_square(pixels, size=_SIZE), mean=_MEAN, std=_STD)


def _to_timms_names(weights: Weights, network: Any) -> Weights:
    """Return the image part of OpenAI's and open_clip's layout under timm's names; timm's layout unchanged."""
    if "visual.class_embedding" not in weights:
        return weights
    from timm.models.vision_transformer import checkpoint_filter_fn

    return checkpoint_filter_fn(dict(weights), network)
