"""Random weights and images in the shapes of published ones, for comparisons of programs, not of pictures."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.features.inception import CLASSES, POOL_WIDTH, InceptionNetwork


def write_inception(path: Path, *, seed: int = 0) -> Path:
    """Write the Inception network under torch-fidelity's names and in its format, with weights that keep variances."""
    random = torch.Generator().manual_seed(seed)
    tensors = {
        "fc.weight": torch.randn(CLASSES, POOL_WIDTH, generator=random) / 2,
        "fc.bias": torch.randn(CLASSES, generator=random),
    }
    for unit in InceptionNetwork().modules():
        if hasattr(unit, "alias"):
            shape, channels = unit.weight.shape, len(unit.weight)
            weight = torch.randn(shape, generator=random) * (2 / shape[1:].numel()) ** 0.5
            normalisation = {"weight": 1.0, "bias": 0.1, "running_mean": 0.05, "running_var": 1.1}
            tensors[f"{unit.alias}.conv.weight"] = weight
            tensors |= {f"{unit.alias}.bn.{leaf}": torch.full((channels,), at) for leaf, at in normalisation.items()}
            tensors[f"{unit.alias}.bn.num_batches_tracked"] = torch.tensor(0)
    torch.save(tensors, path)
    return path


def write_clip(path: Path) -> Path:
    """Write timm's CLIP ViT-B/32 as timm initialises it."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("vit_base_patch32_clip_quickgelu_224", num_classes=512).state_dict(), path)
    return path


def blobs(images: int, *, seed: int, contrast: float = 40.0) -> Tensor:
    """Return images of coloured blobs, uint8 [N, 3, 32, 32]; no two alike."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(images, 3, 4, 4, generator=random)
    fine = torch.randn(images, 3, 32, 32, generator=random) / 4
    smooth = F.interpolate(coarse, size=32, mode="bicubic")
    return (128 + contrast * (smooth + fine)).clamp(0, 255).to(torch.uint8)
