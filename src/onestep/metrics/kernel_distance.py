"""Kernel distance: the squared maximum mean discrepancy of two sets of features (arXiv:1801.01401, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from onestep.config.constraints import Constraint, Seed, SmallCount
from onestep.metrics import Direction
from onestep.metrics._features import finite_pair

__all__ = ["KernelDistance"]


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """Unbiased estimate with the cubic kernel (x y / D + 1)^3, averaged over random subsets; lower is better.

    On Inception features it is KID. Unlike the Frechet distance it is unbiased in the number of images, so it may be
    slightly negative where the distributions agree.
    """

    values: ClassVar[Mapping[str, Direction]] = {"kernel_distance": "lower"}
    inputs: ClassVar[tuple[str, ...]] = ("generated", "real")
    takes_statistics: ClassVar[bool] = False

    subsets: SmallCount = 100  # pairs of subsets; the published number
    # Images in a subset of either set, drawn without replacement; the published number.
    subset_images: Annotated[int, Constraint(gt=0, le=1_000_000)] = 1000
    seed: Seed = 0  # of the draw

    def __post_init__(self) -> None:
        if self.subsets < 1 or self.subset_images < 2:
            found = f"{self.subsets} and {self.subset_images}"
            raise ValueError(f"subsets and subset_images: got {found}, expected at least 1 and at least 2")

    @property
    def least_images(self) -> int:
        """The images of one subset."""
        return self.subset_images

    def __call__(self, *, generated: Any, real: Any) -> dict[str, float]:
        """Compare two sets of features, tensors or numpy arrays, in float64: mean and deviation over the subsets.

        Fewer images than in a subset, values that are not finite, or different widths are a ValueError.
        """
        sets = finite_pair(generated, real, least=(self.subset_images, self.subset_images))
        random = np.random.default_rng(self.seed)
        estimates = []
        for _ in range(self.subsets):
            subsets = [rows[random.choice(len(rows), self.subset_images, replace=False)].double() for rows in sets]
            estimates.append(_unbiased(*subsets))
        distances = torch.stack(estimates)
        std = distances.std(unbiased=False)
        return {"kernel_distance": float(distances.mean()), "kernel_distance_std": float(std)}


def _unbiased(generated: Tensor, real: Tensor) -> Tensor:
    """Return the estimate from two sets of equal size, without the kernel of an image with itself."""
    count = len(generated)
    within = sum(
        _kernel(rows, rows).sum() - ((rows.square().sum(dim=1) / rows.shape[1] + 1) ** 3).sum()
        for rows in (generated, real)
    )
    return within / (count * (count - 1)) - 2 * _kernel(generated, real).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
