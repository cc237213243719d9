"""Kernels on features, the squared maximum mean discrepancy of two sets, and short forms of the mean of a kernel.

Legend: N rows of one set, M of another, D feature width, L landmarks, F random frequencies. All in float64.

The squared discrepancy (MMD, Gretton et al., JMLR 2012) of two distributions is E k(x, x') - 2 E k(x, y) + E k(y, y').
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_ROWS = 4096  # rows of a table of kernels at a time
_JITTER = 1e-6  # added to the diagonal of the landmarks' kernels, as in RDM (arXiv:2607.02375)
_SOFTENING = 1e-5  # under the roots of the distance kernel, as in the released code of MMD GANs


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A sum of kernels of raw features, divided by `unit`; the greater, the more alike.

    Attributes:
        name: `gaussian`, exp(-d^2 / 2 s^2) for each of `scales` s; `rational_quadratic`, (1 + d^2 / 2 a)^-a for each of
            `scales` a (arXiv:1801.01401, eq. 5); `distance`, |x| + |y| - |x - y|, without scales; `polynomial`,
            (x y + offset)^p for each of `scales` p.
        unit: Distances are in units of this length.
        dot: Weight of the product x y beside `rational_quadratic`.
        offset: Addend of `polynomial`.
    """

    name: Literal["gaussian", "rational_quadratic", "distance", "polynomial"]
    scales: tuple[float, ...]
    unit: float = 1.0
    dot: float = 0.0
    offset: float = 0.0

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the kernel of all pairs [N, M] of rows [N, D] and [M, D]."""
        a, b = a.double() / self.unit, b.double() / self.unit
        if self.name == "polynomial":
            product = a @ b.T + self.offset
            return torch.stack([product.pow(scale) for scale in self.scales]).sum(dim=0)
        squared = squared_distances(a, b)
        if self.name == "distance":
            lengths = [(each.square().sum(dim=1) + _SOFTENING).sqrt() for each in (a, b)]
            return lengths[0][:, None] + lengths[1] - (squared + _SOFTENING).sqrt()
        total = self.dot * (a @ b.T) if self.dot else torch.zeros_like(squared)
        for scale in self.scales:
            if self.name == "gaussian":
                total = total + (squared / (-2 * scale**2)).exp()
            else:
                total = total + (1 + squared / (2 * scale)).pow(-scale)
        return total


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances [N, M] of rows [N, D] and [M, D], at least 0."""
    return (a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T).clamp(min=0)


def median_distance(rows: Tensor) -> float:
    """Return the root of the median of the squared distances of all pairs of rows [N, D]; ValueError where it is 0."""
    found = math.sqrt(float(torch.pdist(rows.double()).square().median()))
    if not found > 0:
        raise ValueError("features: got at least half of the images with equal features, expected different ones")
    return found


def mean_within(kernel: Callable[[Tensor, Tensor], Tensor], rows: Tensor, *, diagonal: bool) -> Tensor:
    """Return the mean kernel of all pairs of rows [N, D]; without the `diagonal`, of pairs of different rows."""
    table = kernel(rows, rows)
    if diagonal:
        return table.mean()
    return (table.sum() - table.diagonal().sum()) / (len(rows) * (len(rows) - 1))


def two_sample(
    kernel: Callable[[Tensor, Tensor], Tensor], generated: Tensor, real: Tensor, *, diagonal: bool
) -> Tensor:
    """Return the squared discrepancy of two sets of rows [N, D] and [M, D]; unbiased without the `diagonal`."""
    within = mean_within(kernel, generated, diagonal=diagonal) + mean_within(kernel, real, diagonal=diagonal)
    return within - 2 * kernel(generated, real).mean()


def neighbours(kernel: Callable[[Tensor, Tensor], Tensor], generated: Tensor, real: Tensor) -> Tensor:
    """Return an unbiased squared discrepancy of two sets of N rows [N, D] from N - 1 terms, in linear time and memory.

    A term is k(x, x') + k(y, y') - k(x, y') - k(y, x') of a generated x, a real y and the next ones, x' and y'.
    """

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return torch.vmap(lambda one, other: kernel(one[None], other[None])[0, 0])(a[:-1], b[1:]).mean()

    return apart(generated, generated) + apart(real, real) - apart(generated, real) - apart(real, generated)


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """The mean of a kernel over a large set, by few rows: mean_y k(x, y) is about sum_j weights_j k(x, rows_j).

    Attributes:
        rows: [L, D].
        weights: [L].
        within: Mean of the kernel over pairs of the set, a constant.
    """

    rows: Tensor
    weights: Tensor
    within: Tensor

    def discrepancy(self, kernel: Callable[[Tensor, Tensor], Tensor], generated: Tensor, *, diagonal: bool) -> Tensor:
        """Return the squared discrepancy of rows [N, D] and the set."""
        towards = (kernel(generated, self.rows) @ self.weights.double()).mean()
        return mean_within(kernel, generated, diagonal=diagonal) - 2 * towards + self.within


def landmarks_of(kernel: Callable[[Tensor, Tensor], Tensor], rows: Tensor, *, chosen: Tensor, pairs: int) -> Landmarks:
    """Return landmarks `chosen` [L, D] with the weights of a Nystrom mean embedding of rows [N, D].

    weights = (K + 1e-6)^-1 mu, where K are the kernels of landmarks, and mu_j their mean over rows. `within` is that of
    the first `pairs` rows.
    """
    means = torch.stack([kernel(chosen, part).sum(dim=1) for part in rows.split(_ROWS)]).sum(dim=0) / len(rows)
    inner = kernel(chosen, chosen)
    inner = inner + _JITTER * torch.eye(len(chosen), dtype=inner.dtype, device=inner.device)
    weights = torch.cholesky_solve(means[:, None], torch.linalg.cholesky(inner))[:, 0]
    return Landmarks(rows=chosen, weights=weights.float(), within=mean_of_pairs(kernel, rows[:pairs]))


def mean_of_pairs(kernel: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return the mean kernel of all pairs of rows [N, D], of a row with itself too, in parts."""
    sums = [kernel(part, other).sum() for part in rows.split(_ROWS) for other in rows.split(_ROWS)]
    return torch.stack(sums).sum() / len(rows) ** 2


def centroids(rows: Tensor, *, count: int, steps: int, seed: int) -> Tensor:
    """Return `count` centroids [L, D] of rows [N, D] after some steps of Lloyd's algorithm from random rows.

    A centroid without rows becomes a random row. On a CUDA device sums are products, so that all ranks have the same.
    """
    random = torch.Generator().manual_seed(seed)
    found = rows[torch.randperm(len(rows), generator=random)[:count].to(rows.device)].double()
    for _ in range(steps):
        sums, sizes = torch.zeros_like(found), found.new_zeros(len(found))
        for part, nearest in _nearest(rows, found):
            members = torch.nn.functional.one_hot(nearest, len(found)).to(found.dtype)
            sums, sizes = sums + members.T @ part, sizes + members.sum(dim=0)
        others = torch.randint(len(rows), (len(found),), generator=random).to(rows.device)
        found = torch.where((sizes > 0)[:, None], sums / sizes.clamp(min=1)[:, None], rows[others].double())
    return found.float()


def _nearest(rows: Tensor, centres: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for part in rows.split(_ROWS):
        double = part.double()
        yield double, squared_distances(double, centres).argmin(dim=1)


def frequencies(*, width: int, count: int, scales: tuple[float, ...], unit: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return random frequencies [D, F] and phases [F], `count` for each of the scales of a Gaussian kernel."""
    random = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(width, count, generator=random, dtype=torch.float64) / (scale * unit) for scale in scales]
    phases = 2 * math.pi * torch.rand(count * len(scales), generator=random, dtype=torch.float64)
    return torch.cat(drawn, dim=1), phases


def mean_waves(rows: Tensor, waves: tuple[Tensor, Tensor], *, count: int) -> Tensor:
    """Return the mean over rows [N, D] of (2 / count)^(1/2) cos(x W + b) [F] (random Fourier features).

    The squared distance of two such means is about the squared discrepancy of a Gaussian kernel (Rahimi and Recht,
    NeurIPS 2007).
    """
    turned = [(part.double() @ waves[0].double() + waves[1].double()).cos().sum(dim=0) for part in rows.split(_ROWS)]
    return math.sqrt(2 / count) * torch.stack(turned).sum(dim=0) / len(rows)


def sliced(generated: Tensor, real: Tensor, directions: Tensor) -> Tensor:
    """Return the mean over unit directions [D, F] of the squared Wasserstein-2 distance of projected rows [N, D].

    Both sets have N rows; projections are sorted, and compared in order.
    """
    along = directions.double() / directions.double().norm(dim=0)
    one, other = ((rows.double() @ along).sort(dim=0).values for rows in (generated, real))
    return (one - other).square().mean()


def balanced(scores: Tensor, floors: Tensor, *, total: float, clip: float = 5.0, temperature: float = 2.0) -> Tensor:
    """Return weights [K] of K discrepancies by how far each is above its floor, after RDM (arXiv:2607.02375).

    Those at or below their floors get 0, the others the softmax of their excess over `temperature` times the mean
    positive excess, times `total`. If all are satisfied, all are 0.
    """
    excess = (scores - floors).clamp(-clip, clip)
    above = excess > 0
    if not bool(above.any()):
        return torch.zeros_like(excess)
    shares = (excess / (temperature * excess[above].mean())).masked_fill(~above, -math.inf).softmax(dim=0)
    return total * shares
