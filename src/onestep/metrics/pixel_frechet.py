"""Frechet distance of the pixels themselves, without a feature network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.config.constraints import Constraint
from onestep.metrics import Direction
from onestep.metrics._features import finite_pair
from onestep.metrics.frechet import frechet_from_statistics, gaussian_fit

__all__ = ["PixelFrechet"]

_ROWS = 4_096  # images averaged at a time


@dataclass(frozen=True, kw_only=True)
class PixelFrechet:
    """Frechet distance of images averaged to `size` x `size` pixels, in units of [0, 1]; lower is better.

    It depends on mean and covariance of colours and coarse shapes alone, and no network was trained on it: a check of
    orders by feature networks, not a measure of quality.
    """

    values: ClassVar[Mapping[str, Direction]] = {"frechet": "lower"}
    inputs: ClassVar[tuple[str, ...]] = ("pixels", "real_pixels")
    takes_statistics: ClassVar[bool] = False
    least_images: ClassVar[int] = 2

    size: Annotated[int, Constraint(ge=1, le=64)] = 8

    def __call__(self, *, pixels: Any, real_pixels: Any) -> dict[str, float]:
        """Compare pixels, uint8 [N, C, H, W] and [M, C, H, W], in float64.

        Images smaller than `size`, of other channels than the real ones, or fewer than two are a ValueError.
        """
        generated, real = (self._averaged(each) for each in (pixels, real_pixels))
        generated, real = finite_pair(generated, real, least=(2, 2))
        return {"frechet": frechet_from_statistics(*gaussian_fit(generated), *gaussian_fit(real))}

    def _averaged(self, pixels: Any) -> Tensor:
        """Return images averaged to size x size, float64 [N, C * size * size]."""
        images = torch.as_tensor(pixels)
        if images.ndim != 4 or min(images.shape[2:]) < self.size:
            raise ValueError(f"pixels: got {list(images.shape)}, expected [N, C, H, W] of at least {self.size} pixels")
        parts = [F.adaptive_avg_pool2d(part.double() / 255, self.size).flatten(1) for part in images.split(_ROWS)]
        return torch.cat(parts)
