"""The Frechet distance as a loss: FD-loss (arXiv:2604.28190).

Legend: B images of a micro-batch, N of a step over all ranks, D feature width, Q images of the population. Features
are float32; moments and distances are computed in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from onestep.config.constraints import Constraint, NotNegative, Positive, ShareBelowOne
from onestep.coupling import Coupled, CoupledLoss, Start, Vectors
from onestep.objectives import Batch, Networks, Phase
from onestep.objectives._vectors import GENERATOR, VectorLoss, expect_finite, generated_vectors

__all__ = ["Frechet"]

_EPSILON = torch.finfo(torch.float64).eps

_Images = Annotated[int, Constraint(ge=2, le=10_000_000)]


@dataclass(frozen=True, kw_only=True)
class Frechet(VectorLoss):
    """Train a generator by the Frechet distance of its features to those of the dataset, without a discriminator.

    The loss is the sum over feature networks of `weight` F / (F + `eps`), whose denominator is constant. Its value
    means little; F itself is in the log. One step has too few images for a covariance, so the distance is that of a
    population which remembers the images of earlier steps; the gradient flows through those of the step.

    Real images make the reference before the first step. The steps need none; they take the conditions of the
    dataset, and `images` of a run counts generated images.

    A table should not measure a run by the features that it was trained on.

    Attributes:
        features: Entries of `backbones`, whose vectors are compared, with the weight of each.
        population: `average`, moments that are averages over steps; `ring`, the last `warm_start` features; `batch`,
            the images of the step alone.
        decay: Share of an average that a step keeps. The population lags by 1 / (1 - decay) steps: with few steps or a
            high learning rate, a long memory diverges. With 0 it has no memory.
        warm_start: Images of the generator before the first step, from which a population with memory begins; the
            length of a ring.
        reference: The most images of the dataset whose features make the reference.
        eps: Addend of the denominator, in units of the distance: far larger distances have one weight each.
        gain: Factor of the loss; None: 1 / (1 - decay), for a ring its length / N, else 1. It undoes that the gradient
            shrinks with the share of a step in its population, down to the `eps` of Adam. 1.0 is the reference's.
        sigma: The only noise level at which the generator is trained and sampled.
        resolution: Pixels to which images are resized before networks of timm; by default the size of their weights.
    """

    # The constants of the released code (github.com/Jiawei-Yang/FD-Loss), but for the gain.
    population: Literal["average", "ring", "batch"] = "average"
    decay: ShareBelowOne = 0.999
    warm_start: _Images = 50_000
    reference: _Images = 50_000
    eps: NotNegative = 0.01
    gain: Positive | None = None

    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)  # of the released code
    preconditioning: ClassVar[str] = "d2o"

    @property
    def batch_limits(self) -> tuple[int, int | None]:
        """Fewest and most images of a step."""
        return 2, self.warm_start if self.population == "ring" else None

    def phases(self) -> tuple[Phase, ...]:
        """Return the generator's step, whose loss couples all images of the step."""
        coupled = Coupled(features=self.generated, loss=self.loss, start=self.start)
        return (Phase(name=GENERATOR, trains=GENERATOR, coupled=coupled),)

    def generated(self, networks: Networks, batch: Batch) -> Vectors:
        """Return the features of new images, by network [B, D]."""
        return generated_vectors(networks, batch, sigma=self.sigma, features=self.features)

    def start(self, start: Start) -> dict[str, Tensor]:
        """Return the moments of the dataset, and the population that the generator begins with.

        By `NETWORK/NAME`: of the dataset `reference_mean` [D], `reference_covariance` [D, D] and its symmetric `root`;
        of an average `mean` and `second_moment`; of a ring `features` [Q, D], the place of the oldest `pointer` [1],
        and `sum` [D] and `outer` [D, D] over all.
        """
        fewest, most = self.batch_limits
        if start.batch < fewest or start.batch > (most or start.batch):
            raise ValueError(f"batch: got {start.batch} images, expected from {fewest} to {most or 'any'}")
        real = start.collect(self.real, images=min(self.reference, start.images), stream="reference")
        expect_finite(real, of="the dataset")
        state: dict[str, Tensor] = {}
        for name, rows in real.items():
            mean, covariance = unbiased_moments(rows.double())
            state |= {f"{name}/reference_mean": mean, f"{name}/reference_covariance": covariance}
            state[f"{name}/root"] = symmetric_root(covariance)
        if self.population == "batch":
            return state
        if self.population == "average" and self.decay == 0:  # what an average begins with has no weight
            nothing = {name: torch.zeros(1, rows.shape[1], device=rows.device) for name, rows in real.items()}
            return state | {
                f"{name}/{key}": v for name, rows in nothing.items() for key, v in begun_average(rows).items()
            }
        generated = start.collect(self.generated, images=self.warm_start, stream="warm start")
        expect_finite(generated, of="the generator at the start")
        for name, rows in generated.items():
            begun = begun_average(rows) if self.population == "average" else begun_ring(rows)
            state |= {f"{name}/{key}": value for key, value in begun.items()}
        return state

    def loss(self, features: Vectors, state: Mapping[str, Tensor]) -> CoupledLoss:
        """Return `gain` times the sum of the relative distances; `frechet_NETWORK` in the log is F."""
        total: list[Tensor] = []
        observed: dict[str, Tensor] = {}
        new: dict[str, Tensor] = {}
        for name, weight in sorted(self.features.items()):
            own = {key.partition("/")[2]: value for key, value in state.items() if key.partition("/")[0] == name}
            population, changed = self.moments(features[name], own)
            reference = ReferenceMoments(own["reference_mean"], own["reference_covariance"], own["root"])
            distance = frechet_distance(*population, reference)
            total.append(weight * distance / (distance.detach() + self.eps))
            observed[f"frechet_{name}"] = distance.detach()
            new |= {f"{name}/{key}": value for key, value in changed.items()}
        gain = self.gain_of(len(next(iter(features.values()))))
        return CoupledLoss(value=gain * functools.reduce(torch.add, total), observed=observed, state=new)

    def gain_of(self, images: int) -> float:
        """Return the factor of the loss in steps of so many images."""
        if self.gain is not None:
            return self.gain
        return {"average": 1 / (1 - self.decay), "ring": self.warm_start / images, "batch": 1.0}[self.population]

    def moments(self, rows: Tensor, state: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Return mean [D] and covariance [D, D] of the population with new features [N, D], and its new state."""
        if self.population == "average":
            return averaged_moments(rows, state, decay=self.decay)
        if self.population == "ring":
            return ring_moments(rows, state)
        return unbiased_moments(rows.double()), {}


class ReferenceMoments(NamedTuple):
    """Mean [D], covariance [D, D] and its symmetric root [D, D] of the dataset, in float64."""

    mean: Tensor
    covariance: Tensor
    root: Tensor


def frechet_distance(mean: Tensor, covariance: Tensor, reference: ReferenceMoments) -> Tensor:
    """Return |m - m_r|^2 + tr S + tr S_r - 2 tr (R S R)^(1/2), with S_r = R R; differentiable in m and S.

    The product is symmetric, so its root needs its eigenvalues alone. Those that are 0 but for rounding, as where S has
    fewer images than D, have no part in value and gradient.
    """
    product = reference.root @ covariance @ reference.root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    positive = eigenvalues > len(eigenvalues) * _EPSILON * eigenvalues.detach().abs().max()
    roots = torch.where(positive, eigenvalues, 1.0).sqrt() * positive
    apart = (mean - reference.mean).square().sum()
    return apart + covariance.trace() + reference.covariance.trace() - 2 * roots.sum()


def unbiased_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [D] and covariance [D, D], divided by N - 1, of rows [N, D]."""
    mean = rows.mean(dim=0)
    centered = rows - mean
    return mean, centered.T @ centered / (len(rows) - 1)


def symmetric_root(matrix: Tensor) -> Tensor:
    """Return the symmetric root [D, D] of a symmetric matrix, with eigenvalues below 0, from rounding, as 0."""
    eigenvalues, eigenvectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (eigenvectors * eigenvalues.clamp(min=0).sqrt()) @ eigenvectors.T


def begun_average(rows: Tensor) -> dict[str, Tensor]:
    """Return the state of an average population that begins with features [Q, D]."""
    double = rows.double()
    return {"mean": double.mean(dim=0), "second_moment": double.T @ double / len(double)}


def averaged_moments(
    rows: Tensor, state: Mapping[str, Tensor], *, decay: float
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Return mean and covariance of an average population after new features [N, D], and its new state.

    m <- b m + (1 - b) mean(f), M <- b M + (1 - b) mean(f f^T), S = M - m m^T.
    """
    double = rows.double()
    mean = decay * state["mean"] + (1 - decay) * double.mean(dim=0)
    second = decay * state["second_moment"] + (1 - decay) * double.T @ double / len(double)
    return (mean, second - torch.outer(mean, mean)), {"mean": mean, "second_moment": second}


def begun_ring(rows: Tensor) -> dict[str, Tensor]:
    """Return the state of a ring of features [Q, D], of which the first one is the oldest."""
    double = rows.double()
    pointer = torch.zeros(1, dtype=torch.int64, device=rows.device)
    return {"features": rows, "pointer": pointer, "sum": double.sum(dim=0), "outer": double.T @ double}


def ring_moments(rows: Tensor, state: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Return mean and covariance, divided by Q - 1, of a ring whose oldest features [N, D] the new ones replace."""
    size = len(state["features"])
    places = (state["pointer"] + torch.arange(len(rows), device=rows.device)) % size
    old, double = state["features"][places].double(), rows.double()
    total = state["sum"] - old.sum(dim=0) + double.sum(dim=0)
    outer = state["outer"] - old.T @ old + double.T @ double
    mean = total / size
    covariance = (outer - size * torch.outer(mean, mean)) / (size - 1)
    kept = state["features"].index_copy(0, places, rows.detach())
    pointer = (state["pointer"] + len(rows)) % size
    return (mean, covariance), {"features": kept, "pointer": pointer, "sum": total, "outer": outer}
