"""Two classes on the same few points, blurred by Gaussian noise: a density ratio in closed form.

The toy of Yu et al., Spread Mutual Information (arXiv:2610.10021, appendix C.1.2). Legend: M points, N rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Noised points x = mu_m + sigma noise.

    Attributes:
        x: [..., 2].
        labels: y, 1 or -1 [...].
        sigma: Noise levels [...].
        noise: Standard normal [..., 2].
        index: m of each row, int64 [...].
    """

    x: Tensor
    labels: Tensor
    sigma: Tensor
    noise: Tensor
    index: Tensor


def jittered_grid(*, columns: int, rows: int, half: float, jitter: float, seed: int) -> Tensor:
    """Return the points of a grid on [-half, half]^2, each moved by jitter N(0, 1), float64 [columns rows, 2]."""
    across, up = (torch.linspace(-half, half, n, dtype=torch.float64) for n in (columns, rows))
    points = torch.cartesian_prod(across, up)
    random = torch.Generator().manual_seed(seed)
    return points + jitter * torch.randn(points.shape, dtype=torch.float64, generator=random)


def class_log_weights(points: Tensor, *, contrast: float) -> Tensor:
    """Return the log-probability of each point in the classes y = 1 and y = -1, [2, M].

    It is proportional to exp(contrast y b), where b is sin(2 mu_1) + cos(2 mu_2), standardised over the points.
    """
    b = torch.sin(2 * points[:, 0]) + torch.cos(2 * points[:, 1])
    b = (b - b.mean()) / b.std(correction=0)
    return torch.stack([contrast * b, -contrast * b]).log_softmax(dim=1)


class SmoothedPoints:
    """p_sigma(x | y), the points of class y blurred by N(0, sigma^2), and p_sigma(x) of both classes alike.

    Attributes:
        points: float64 [M, 2].
        log_weights: Log-probabilities of the points in the classes y = 1 and y = -1, [2, M].
        marginal: Those of both classes together, [M].
    """

    def __init__(self, points: Tensor, log_weights: Tensor) -> None:
        self.points, self.log_weights = points, log_weights
        self.marginal = log_weights.logsumexp(dim=0) - math.log(2)

    def log_ratio(self, x: Tensor, labels: Tensor, sigma: Tensor) -> Tensor:
        """Return log p_sigma(x | y) - log p_sigma(x) [N] of rows x [N, 2], labels [N] and noise levels [N]."""
        given, either = self._logits(x, labels, sigma)
        return given.logsumexp(dim=1) - either.logsumexp(dim=1)

    def scores(self, x: Tensor, labels: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of log p_sigma(x | y) and of log p_sigma(x) by x, [N, 2] each."""
        means = (each.softmax(dim=1) @ self.points for each in self._logits(x, labels, sigma))
        given, either = ((mean - x) / sigma[:, None] ** 2 for mean in means)
        return given, either

    def score_difference(self, x: Tensor, labels: Tensor, sigma: Tensor) -> Tensor:
        """Return sigma^-2 sum_m (gamma_m|y - gamma_m) mu_m, the gradient of `log_ratio` [N, 2]."""
        given, either = (each.softmax(dim=1) for each in self._logits(x, labels, sigma))
        return (given - either) @ self.points / sigma[:, None] ** 2

    def _logits(self, x: Tensor, labels: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        away = (x[:, None] - self.points).square().sum(dim=2)
        near = -away / (2 * sigma[:, None] ** 2)
        return near + self.log_weights[(labels < 0).long()], near + self.marginal

    def draw(self, *shape: int, levels: tuple[float, float], random: torch.Generator) -> Rows:
        """Draw rows on the device of `random` in float32: both classes alike, ln sigma uniform between two levels."""
        device = random.device
        points = self.points.to(device, torch.float32)
        # One number chooses class and point: the first M of 2 M cells are those of y = 1.
        cells = (self.log_weights.exp() / 2).flatten().cumsum(0).to(device, torch.float32)
        cell = torch.searchsorted(cells, torch.rand(shape, generator=random, device=device), right=True)
        cell = cell.clamp(max=len(cells) - 1)
        low, high = map(math.log, levels)
        sigma = torch.exp(low + (high - low) * torch.rand(shape, generator=random, device=device))
        noise = torch.randn((*shape, 2), generator=random, device=device)
        index = cell % len(points)
        labels = torch.where(cell < len(points), 1.0, -1.0)
        return Rows(x=points[index] + sigma[..., None] * noise, labels=labels, sigma=sigma, noise=noise, index=index)
