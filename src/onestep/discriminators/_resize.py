"""Bilinear resizing, on CUDA devices also in a form whose gradient is the same in every call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.arithmetic import half_products


def resized(images: Tensor, *, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return images [B, C, *size] of images [B, C, H, W].

    Where deterministic algorithms are requested of torch, this is `as_products`, except on a CPU: on CUDA devices the
    gradient of torch's own resize adds in any order.
    """
    if torch.are_deterministic_algorithms_enabled() and images.device.type != "cpu":
        return as_products(images, size=size, align_corners=align_corners)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=align_corners)


def as_products(images: Tensor, *, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return the bilinear resize of images [B, C, H, W] as one product for each side; the same up to rounding."""
    rows, columns = (
        _weights(before, after, align_corners=align_corners, like=images)
        for before, after in zip(images.shape[-2:], size, strict=True)
    )
    with half_products(images.device, enabled=False):  # autocast would round the weights
        return rows @ images @ columns.t()


def _weights(before: int, after: int, *, align_corners: bool, like: Tensor) -> Tensor:
    """Return the weight of each source pixel in each pixel of a side [after, before], not 0 for two in a row."""
    places = torch.arange(after, dtype=torch.float32, device=like.device)
    if align_corners:
        places = places * ((before - 1) / max(after - 1, 1))
    else:
        places = ((places + 0.5) * (before / after) - 0.5).clamp(min=0, max=before - 1)
    distances = (places[:, None] - torch.arange(before, dtype=torch.float32, device=like.device)).abs()
    return (1 - distances).clamp(min=0).to(like.dtype)
