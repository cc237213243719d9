"""Kernel distance: the squared maximum mean discrepancy of two sets of features (arXiv:1801.01401, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from onestep.metrics import Direction
from onestep.metrics._arrays import finite_pair

__all__ = ["KernelDistance"]


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """Unbiased estimate with the cubic kernel (x y / D + 1)^3, averaged over random subsets; lower is better.

    On Inception features it is KID. Unlike the Frechet distance it is unbiased in the number of images, so it may be
    slightly negative where the distributions agree.

    Attributes:
        subsets: Number of pairs of subsets; 100 in published values.
        subset_images: Images in a subset of either set, drawn without replacement; 1,000 in published values.
        seed: Seed of the draw.
    """

    values: ClassVar[Mapping[str, Direction]] = {"kernel_distance": "lower"}
    inputs: ClassVar[tuple[str, ...]] = ("generated", "real")
    takes_statistics: ClassVar[bool] = False

    subsets: int = 100
    subset_images: int = 1000
    seed: int = 0

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

        Raises:
            ValueError: A set has fewer images than a subset or values that are not finite, or the widths differ.
        """
        least = self.subset_images
        sets = finite_pair(generated=generated, real=real, least_generated=least, least_real=least)
        distances = torch.stack([_unbiased(*pair) for pair in self._pairs(*sets)])
        std = distances.std(unbiased=False)
        return {"kernel_distance": float(distances.mean()), "kernel_distance_std": float(std)}

    def _pairs(self, generated: Tensor, real: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs of subsets, float64 [subset_images, D]."""
        random = np.random.default_rng(self.seed)
        for _ in range(self.subsets):
            chosen = [random.choice(len(rows), self.subset_images, replace=False) for rows in (generated, real)]
            yield generated[chosen[0]].double(), real[chosen[1]].double()


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
