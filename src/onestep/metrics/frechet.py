"""Frechet distance of Gaussians fitted to two sets of features (Heusel et al., arXiv:1706.08500, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from onestep.metrics import Direction, Statistics
from onestep.metrics._features import finite_pair, finite_rows

__all__ = ["FrechetDistance"]

_ROWS = 16_384  # rows converted to float64 at a time


class FrechetDistance:
    """Squared 2-Wasserstein distance of two Gaussians; 0 where mean and covariance agree, lower is better.

    On Inception features it is FID.
    """

    values: ClassVar[Mapping[str, Direction]] = {"frechet": "lower"}
    inputs: ClassVar[tuple[str, ...]] = ("generated", "real")
    takes_statistics: ClassVar[bool] = True
    least_images: ClassVar[int] = 2

    def __call__(self, *, generated: Any, real: Any) -> dict[str, float]:
        """Compare two sets of features, tensors or numpy arrays, or features with `Statistics`, in float64.

        Fewer than two images, values that are not finite, or different widths are a ValueError.
        """
        if isinstance(real, Statistics):
            rows = finite_rows(generated, called="generated features", at_least=2)
            return {"frechet": frechet_from_statistics(*gaussian_fit(rows), real.mean, real.covariance)}
        generated, real = finite_pair(generated, real, least=(2, 2))
        return {"frechet": frechet_from_statistics(*gaussian_fit(generated), *gaussian_fit(real))}


def gaussian_fit(features: Any) -> tuple[Tensor, Tensor]:
    """Return mean [D] and covariance [D, D], normalized by N - 1, of at least two features [N, D], in float64."""
    features = finite_rows(features, called="features", at_least=2)
    pieces = features.split(_ROWS)
    mean = torch.stack([rows.to(torch.float64).sum(dim=0) for rows in pieces]).sum(dim=0) / len(features)
    covariance = mean.new_zeros(len(mean), len(mean))
    # Differs from the reference: centered first, whereas EDM subtracts N mean mean^T at the end. The result is the
    # same, without cancellation where the mean is large.
    for rows in pieces:
        centered = rows.to(torch.float64) - mean
        covariance += centered.T @ centered
    return mean, covariance / (len(features) - 1)


def frechet_from_statistics(mean_a: Any, cov_a: Any, mean_b: Any, cov_b: Any) -> float:
    """Return |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), at least 0.

    Computed on the device of `mean_a`. Shapes other than [D], [D, D], [D], [D, D] are a ValueError.
    """
    statistics = (mean_a, cov_a, mean_b, cov_b)
    device = mean_a.device if isinstance(mean_a, Tensor) else None
    mean_a, cov_a, mean_b, cov_b = (torch.as_tensor(a, dtype=torch.float64, device=device) for a in statistics)
    width = len(mean_b)
    if mean_a.shape != (width,) or not cov_a.shape == cov_b.shape == (width, width):
        shapes = ", ".join(str(list(a.shape)) for a in (mean_a, cov_a, mean_b, cov_b))
        raise ValueError(f"statistics: got the shapes {shapes}, expected [D], [D, D], [D], [D, D] with one width D")
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * _trace_of_root(cov_a, cov_b)
    return max(0.0, float(distance))


def _trace_of_root(cov_a: Tensor, cov_b: Tensor) -> Tensor:
    """Return tr((cov_a cov_b)^(1/2)).

    With cov_b = F F^T the product has the eigenvalues of the symmetric matrix F^T cov_a F, so no root of a
    non-symmetric matrix is needed. F is the Cholesky factor, or from eigenvectors where the rank is deficient.
    """
    factor, failed = torch.linalg.cholesky_ex(cov_b)
    if failed:
        eigenvalues, vectors = torch.linalg.eigh(cov_b)
        factor = vectors * eigenvalues.clamp(min=0).sqrt()
    eigenvalues = torch.linalg.eigvalsh(factor.T @ cov_a @ factor)
    return eigenvalues.clamp(min=0).sqrt().sum()  # negative values are rounding errors
