"""Kernel distance: the squared maximum mean discrepancy of two sets of features (arXiv:1801.01401, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from onestep.metrics import Direction
from onestep.metrics._arrays import finite_rows, same_width

__all__ = ["KernelDistance"]


class KernelDistance:
    """Unbiased estimate under the cubic kernel (x y / D + 1)^3, a mean over random subsets; about 0 where sets agree.

    Called KID on Inception features. Unlike the Frechet distance it has no bias in the number of images, so it may be
    slightly negative.
    """

    values: ClassVar[Mapping[str, Direction]] = {"kernel_distance": "lower"}
    compares: ClassVar[tuple[str, ...]] = ("generated", "real")
    takes_statistics: ClassVar[bool] = False

    def __init__(self, *, subsets: int = 100, subset_images: int = 1000, seed: int = 0) -> None:
        """Choose the subsets; the published numbers are over 100 of 1,000 images.

        Args:
            subsets: How many pairs of subsets are drawn.
            subset_images: Images in each, of either set; drawn without repetition.
            seed: Of the draw.

        Raises:
            ValueError: There are no subsets, or they are too small for an estimate.
        """
        if subsets < 1 or subset_images < 2:
            raise ValueError(f"subsets is from 1 on, subset_images from 2; found {subsets} and {subset_images}")
        self.subsets, self.subset_images, self.seed = subsets, subset_images, seed

    def __call__(self, *, generated: Any, real: Any) -> dict[str, float]:
        """Compare two sets of features, tensors or numpy arrays; all arithmetic is float64.

        Args:
            generated: Features of generated images, [N, D].
            real: Features of real images, [M, D].

        Returns:
            `kernel_distance`: the mean over subsets; `kernel_distance_std`: their standard deviation.

        Raises:
            ValueError: A set has fewer images than a subset or values that are not finite, or the widths differ.
        """
        generated = finite_rows(generated, called="generated features", at_least=self.subset_images)
        real = finite_rows(real, called="real features", at_least=self.subset_images)
        same_width(generated=generated, real=real)
        distances = torch.stack([_unbiased(*pair) for pair in self._pairs(generated, real)])
        std = distances.std(unbiased=False)
        return {"kernel_distance": float(distances.mean()), "kernel_distance_std": float(std)}

    def _pairs(self, generated: Tensor, real: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a subset of either set, float64 [subset_images, D]."""
        random = np.random.default_rng(self.seed)
        for _ in range(self.subsets):
            chosen = [random.choice(len(rows), self.subset_images, replace=False) for rows in (generated, real)]
            yield generated[chosen[0]].double(), real[chosen[1]].double()


def _unbiased(generated: Tensor, real: Tensor) -> Tensor:
    """Return the estimate from two sets of equal size: no image is compared with itself."""
    count = len(generated)
    within = sum((_kernel(rows, rows).sum() - _kernel_with_itself(rows)) for rows in (generated, real))
    return within / (count * (count - 1)) - 2 * _kernel(generated, real).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_with_itself(rows: Tensor) -> Tensor:
    """Return the kernel's diagonal, summed."""
    return ((rows.square().sum(dim=1) / rows.shape[1] + 1) ** 3).sum()
