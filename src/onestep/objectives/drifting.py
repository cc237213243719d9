"""Drifting: generated images move along a field that real ones attract and generated ones repel (arXiv:2602.04770).

Legend: B images of a micro-batch, N of a step over all ranks, D feature width. Features are float32; the field is
computed in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from onestep.config.constraints import Constraint, Positive
from onestep.coupling import Coupled, CoupledLoss, Start, Vectors
from onestep.objectives import Batch, Networks, Phase
from onestep.objectives._kernels import squared_distances
from onestep.objectives._vectors import GENERATOR, VectorLoss, generated_vectors

__all__ = ["Drifting"]

_REAL = ":real"  # end of the names of real images' features
_LEAST_SQUARE, _LEAST_DISTANCE, _LEAST_SHARE = 1e-8, 1e-3, 1e-6  # under roots and in denominators
_NOT_ITSELF = 100.0  # mean distances of an image from itself, so that it does not repel itself


@dataclass(frozen=True, kw_only=True)
class Drifting(VectorLoss):
    """Train a generator by a field of forces on its features: each image follows a step along it, held constant.

    The forces are differences of features, weighted with softmax affinities of distances: see `drift`. Where generated
    and real images are alike, attraction and repulsion cancel. The value of the loss is the mean square of the field,
    about the squared number of temperatures at any time; `drift_NETWORK` in the log is the size of the force at the
    largest temperature before it is normalized, which falls.

    A table should not measure a run by the features that it was trained on.

    Differs from the reference: features are vectors of whole images in place of many maps of an own autoencoder, a run
    starts from the teacher, the images of a step are of all classes, without guidance, and are all those that repel.

    Attributes:
        features: Entries of `backbones`, whose vectors are moved, with the weight of each.
        temperatures: Of the affinities, in units of the mean distance. Forces of all are added, each normalized.
        clamp: Whether generated images are limited to [-1, 1], outside of which they have no gradient.
        sigma: The only noise level at which the generator is trained and sampled.
        resolution: Pixels to which images are resized before networks of timm; by default the size of their weights.
    """

    temperatures: Annotated[tuple[Positive, ...], Constraint(min_length=1, max_length=16)] = (0.2, 0.05, 0.02)
    clamp: bool = True

    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)
    preconditioning: ClassVar[str] = "d2o"

    @property
    def batch_limits(self) -> tuple[int, int | None]:
        """Fewest and most images of a step."""
        return 2, None

    def phases(self) -> tuple[Phase, ...]:
        """Return the generator's step, whose loss couples all images of the step."""
        coupled = Coupled(features=self.compared, loss=self.loss, start=self.start)
        return (Phase(name=GENERATOR, trains=GENERATOR, coupled=coupled),)

    def compared(self, networks: Networks, batch: Batch) -> Vectors:
        """Return the features of new images and of the real ones, by network [B, D]."""
        generated = generated_vectors(networks, batch, sigma=self.sigma, features=self.features, clamp=self.clamp)
        with torch.no_grad():
            return generated | {f"{name}{_REAL}": each for name, each in self.real(networks, batch).items()}

    def start(self, start: Start) -> dict[str, Tensor]:
        """Return no state. ValueError: a step has one image, which nothing repels."""
        if start.batch < self.batch_limits[0]:
            raise ValueError(f"batch: got {start.batch} images, expected at least {self.batch_limits[0]}")
        return {}

    def loss(self, features: Vectors, state: Mapping[str, Tensor]) -> CoupledLoss:
        """Return the weighted sum over networks of the mean of |x - (x + F)|^2, where the target x + F is constant."""
        total, observed = [], {}
        for name in sorted(self.features):
            generated = features[name].double()
            field, unit, size = drift(generated.detach(), features[f"{name}{_REAL}"], temperatures=self.temperatures)
            target = generated.detach() / unit + field
            total.append(self.features[name] * (generated / unit - target).square().mean())
            observed[f"drift_{name}"] = size
        return CoupledLoss(value=functools.reduce(torch.add, total), observed=observed)


def drift(generated: Tensor, real: Tensor, *, temperatures: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the field F [N, D] at generated features [N, D], given real ones [M, D], as (F, unit, size).

    F and its images are in units of `unit`, the mean distance over D^(1/2). With distances d_ij of generated image i
    and all images j in units of their mean, a_ij is the root of the product of two softmaxes of -d_ij / temperature,
    over j and over i. The force on i is the sum over real j of a_ij g_i x_j minus that over generated j of
    a_ij r_i x_j, where g_i and r_i sum a_ij over generated and real images (arXiv:2602.04770, algorithm 2). F is the
    sum of the forces of all temperatures, each divided by its root mean square; `size` is that of the highest.
    """
    others = torch.cat([generated, real]).double()
    distances = squared_distances(generated.double(), others).clamp(min=_LEAST_SQUARE).sqrt()
    mean, count = distances.mean(), len(generated)
    unit = (mean / math.sqrt(generated.shape[1])).clamp(min=_LEAST_DISTANCE)
    distances = distances / mean.clamp(min=_LEAST_DISTANCE)
    distances[:, :count] += _NOT_ITSELF * torch.eye(count, dtype=distances.dtype, device=distances.device)
    forces, sizes = [], []
    for temperature in temperatures:
        shares = (-distances / temperature).softmax(dim=1) * (-distances / temperature).softmax(dim=0)
        near = shares.clamp(min=_LEAST_SHARE).sqrt()
        repelling, attracting = near[:, :count], near[:, count:]
        pull = attracting * repelling.sum(dim=1, keepdim=True)
        push = repelling * attracting.sum(dim=1, keepdim=True)
        force = (pull @ others[count:] - push @ others[:count]) / unit
        size = force.square().mean().clamp(min=_LEAST_SQUARE).sqrt()
        forces.append(force / size)
        sizes.append(size)
    return torch.stack(forces).sum(dim=0), unit, sizes[temperatures.index(max(temperatures))]
