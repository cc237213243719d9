"""Squared differences of normalized feature maps, the inner part of LPIPS (arXiv:1801.03924, eq. 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_SMALLEST = 1e-10  # added to norms, as in the published implementation (lpips 0.1.4)


def differences(maps: Sequence[Tensor], target: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield for each pair of maps [B, C, H, W] the squared difference, each pixel first divided by its norm over C."""
    for one, other in zip(maps, target, strict=True):
        yield (_normalized(one) - _normalized(other)).square()


def _normalized(maps: Tensor) -> Tensor:
    # The gradient of this norm is 0 where all channels are 0; that of a square root of a sum would be NaN.
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + _SMALLEST)
