"""The maximum mean discrepancy as a loss: kernel distances of features, after RDM (arXiv:2607.02375).

Legend: B images of a micro-batch, N of a step over all ranks, D feature width. Features are float32; kernels are
computed in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from onestep.config.constraints import Constraint, NotNegative, Positive, Seed
from onestep.coupling import Coupled, CoupledLoss, Start, Vectors
from onestep.objectives import Batch, Networks, Phase
from onestep.objectives._kernels import (
    Kernel,
    Landmarks,
    balanced,
    centroids,
    frequencies,
    landmarks_of,
    mean_waves,
    median_distance,
    neighbours,
    sliced,
    two_sample,
)
from onestep.objectives._vectors import GENERATOR, VectorLoss, expect_finite, generated_vectors

__all__ = ["KernelLoss"]

_REAL = ":real"  # end of the names of real images' features
_LEAST = 1e-7  # of denominators
# Of the released code (github.com/vita-epfl/RDM).
_MEDIAN_IMAGES, _PAIR_IMAGES, _CENTROID_STEPS, _FLOOR_DRAWS, _KEPT_SCORE = 2_000, 100_000, 20, 8, 0.5

_Images = Annotated[int, Constraint(ge=2, le=10_000_000)]
_Scales = Annotated[tuple[Positive, ...], Constraint(min_length=1, max_length=16)]


@dataclass(frozen=True, kw_only=True)
class KernelLoss(VectorLoss):
    """Train a generator by the squared discrepancy (MMD) of its features and those of the dataset, in a kernel.

    The loss is the sum over feature networks of `weight` d / (|d| + 1e-7) with a constant denominator, so that each has
    a gradient of one size; d itself is in the log. All images of a step are compared with each other, which drives
    them apart, and with the dataset, which draws them near.

    Real images make the reference before the first step. The steps need none but with `against: batch`, `neighbours`
    and `slices`; they take the conditions of the dataset, and `images` of a run counts generated images.

    A table should not measure a run by the features that it was trained on. Differs from the reference: kernels are
    computed in float64, and the loss does not depend on the number of processes.

    Attributes:
        features: Entries of `backbones`, whose vectors are compared, with the weight of each.
        kernel: `gaussian`, `rational_quadratic` (arXiv:1801.01401), `distance` or `polynomial`; a sum over `scales`.
        scales: Bandwidths of Gaussian kernels, or the exponents of rational quadratic and polynomial ones.
        unit: Unit of distances: the `median` of those between real images, or that of the features, `one`.
        dot: Weight of the product of features beside rational quadratic kernels.
        offset: Addend of the product of features in polynomial kernels; with 0 and `scales: [1.0]` it is linear.
        against: What the images of a step are compared with. `landmarks`: the whole reference, by its mean embedding on
            centroids (Nystrom); `waves`: the same by random Fourier features, of a Gaussian kernel alone; `batch`: the
            real images of the step; `neighbours`: these in pairs, in linear time and memory, unbiased and far noisier
            (Gretton et al., JMLR 2012, section 6); `slices`: these, by the sliced Wasserstein distance, which needs no
            kernel.
        points: Centroids, random frequencies of each scale, or directions.
        reference: The most images of the dataset whose features make the reference.
        diagonal: Whether the kernel of an image with itself counts. It makes d biased, and never negative.
        normalise: Whether each d is divided by its size; not without the diagonal, where it may be near 0.
        held_out: Images of the dataset outside the reference. With them, weights follow how far d is above that of as
            many held-out images, and a network that is satisfied gets 0. None: constant weights.
        clamp: Whether generated images are limited to [-1, 1], outside of which they have no gradient.
        seed: Of centroids, frequencies, directions and draws of held-out images.
        sigma: The only noise level at which the generator is trained and sampled.
        resolution: Pixels to which images are resized before networks of timm; by default the size of their weights.
    """

    kernel: Literal["gaussian", "rational_quadratic", "distance", "polynomial"] = "gaussian"
    scales: _Scales = (1.0,)
    unit: Literal["median", "one"] = "median"
    dot: NotNegative = 0.0
    offset: NotNegative = 0.0
    against: Literal["landmarks", "waves", "batch", "neighbours", "slices"] = "landmarks"
    points: Annotated[int, Constraint(ge=1, le=100_000)] = 4_096
    reference: _Images = 50_000
    diagonal: bool = True
    normalise: bool = True
    held_out: _Images | None = None
    clamp: bool = True
    seed: Seed = 0

    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)  # of the released code
    preconditioning: ClassVar[str] = "d2o"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalise and not self.diagonal:
            raise ValueError("normalise: got true without the diagonal, expected false: such a distance may be near 0")
        if self.normalise and self.against == "neighbours":
            raise ValueError("normalise: got true against neighbours, expected false: such a distance may be near 0")
        if self.offset and self.kernel != "polynomial":
            raise ValueError(f"offset: got {self.offset} with kernel: {self.kernel}, expected 0, or polynomial")
        if self.dot and self.kernel != "rational_quadratic":
            raise ValueError(f"dot: got {self.dot} with kernel: {self.kernel}, expected 0, or rational_quadratic")
        if self.against == "waves" and (self.kernel != "gaussian" or not self.diagonal):
            raise ValueError(f"against: got waves with kernel: {self.kernel}, expected gaussian with its diagonal")

    @property
    def batch_limits(self) -> tuple[int, int | None]:
        """Fewest and most images of a step."""
        return 2, self.held_out

    def phases(self) -> tuple[Phase, ...]:
        """Return the generator's step, whose loss couples all images of the step."""
        coupled = Coupled(features=self.compared, loss=self.loss, start=self.start)
        return (Phase(name=GENERATOR, trains=GENERATOR, coupled=coupled),)

    def compared(self, networks: Networks, batch: Batch) -> Vectors:
        """Return the features of new images, by network [B, D], and of the real ones where the loss needs them."""
        generated = generated_vectors(networks, batch, sigma=self.sigma, features=self.features, clamp=self.clamp)
        if self.against not in ("batch", "neighbours", "slices"):
            return generated
        with torch.no_grad():
            return generated | {f"{name}{_REAL}": each for name, each in self.real(networks, batch).items()}

    def start(self, start: Start) -> dict[str, Tensor]:
        """Return the reference by `NETWORK/NAME`: see `reference_of`, and of the controller `floor` and `begun` [1]."""
        held = self.held_out or 0
        if start.images < held + 2:
            raise ValueError(f"held_out: got {held}, expected fewer than the {start.images} images of the dataset")
        count = min(self.reference, start.images - held)
        every = start.collect(self.real, images=count + held, stream="reference")
        expect_finite(every, of="the dataset")
        state: dict[str, Tensor] = {}
        for name, rows in every.items():
            own = self.reference_of(rows[:count])
            if held:
                own |= self._controller(rows[count:], own, images=start.batch)
            state |= {f"{name}/{key}": value for key, value in own.items()}
        return state

    def reference_of(self, rows: Tensor) -> dict[str, Tensor]:
        """Return what the loss reads of real features [R, D].

        `unit` [1], the length of distances; with landmarks `rows`, `weights` and `within` of `Landmarks`; with waves
        their `frequencies`, `phases` and `mean`; with slices `directions`.
        """
        width, device = rows.shape[1], rows.device
        unit = median_distance(rows[:_MEDIAN_IMAGES]) if self.unit == "median" else 1.0
        own = {"unit": torch.tensor([unit], dtype=torch.float64, device=device)}
        if self.against == "landmarks":
            chosen = centroids(rows, count=min(self.points, len(rows)), steps=_CENTROID_STEPS, seed=self.seed)
            own |= vars(landmarks_of(self.kernel_of(unit), rows, chosen=chosen, pairs=_PAIR_IMAGES))
        elif self.against == "waves":
            drawn = frequencies(width=width, count=self.points, scales=self.scales, unit=unit, seed=self.seed)
            waves = (drawn[0].to(device), drawn[1].to(device))
            mean = mean_waves(rows, waves, count=self.points)
            own |= {"frequencies": waves[0], "phases": waves[1], "mean": mean}
        elif self.against == "slices":
            random = torch.Generator().manual_seed(self.seed)
            own["directions"] = torch.randn(width, self.points, generator=random).to(device)
        return own

    def kernel_of(self, unit: float) -> Kernel:
        """Return the kernel, given the unit of distances."""
        return Kernel(name=self.kernel, scales=tuple(self.scales), unit=unit, dot=self.dot, offset=self.offset)

    def discrepancy(self, generated: Tensor, state: Mapping[str, Tensor], *, real: Tensor | None = None) -> Tensor:
        """Return d of features [N, D], given `reference_of`, and real features [N, D] where it compares with these."""
        if self.against == "waves":
            mean = mean_waves(generated, (state["frequencies"], state["phases"]), count=self.points)
            return (mean - state["mean"]).square().sum()
        if self.against == "slices":
            assert real is not None
            return sliced(generated, real, state["directions"])
        kernel = self.kernel_of(float(state["unit"]))
        if self.against == "batch":
            assert real is not None
            return two_sample(kernel, generated, real, diagonal=self.diagonal)
        if self.against == "neighbours":
            assert real is not None
            return neighbours(kernel, generated, real)
        known = Landmarks(rows=state["rows"], weights=state["weights"], within=state["within"])
        return known.discrepancy(kernel, generated, diagonal=self.diagonal)

    def loss(self, features: Vectors, state: Mapping[str, Tensor]) -> CoupledLoss:
        """Return the weighted sum of the discrepancies; `kernel_NETWORK` in the log is d of one network."""
        found: dict[str, Tensor] = {}
        for name in sorted(self.features):
            own = {key.partition("/")[2]: value for key, value in state.items() if key.partition("/")[0] == name}
            found[name] = self.discrepancy(features[name], own, real=features.get(f"{name}{_REAL}"))
        total = []
        for name, each in found.items():
            factor = self.features[name] / (each.detach().abs() + _LEAST if self.normalise else 1.0)
            total.append(factor * state[f"{name}/weight"][0] * each if self.held_out else factor * each)
        observed = {f"kernel_{name}": each.detach() for name, each in found.items()}
        new = self.controlled({name: each.detach() for name, each in found.items()}, state) if self.held_out else {}
        if self.held_out:
            observed |= {f"weight_{name}": state[f"{name}/weight"][0] for name in found}
        return CoupledLoss(value=functools.reduce(torch.add, total), observed=observed, state=new)

    def _controller(self, rows: Tensor, state: Mapping[str, Tensor], *, images: int) -> dict[str, Tensor]:
        """Return the start of a network's controller: its floor is the mean d of draws of held-out features [H, D]."""
        random, draws = torch.Generator().manual_seed(self.seed), []
        for _ in range(_FLOOR_DRAWS):
            order = torch.randperm(len(rows), generator=random).to(rows.device)
            one, other = rows[order[:images]], rows[order[-images:]]
            draws.append(self.discrepancy(one, state, real=other))
        floor = torch.stack(draws).mean().reshape(1)
        zero = torch.zeros_like(floor)
        return {"floor": floor, "score": zero, "weight": zero + 1, "begun": zero}

    def controlled(self, found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the controller's new state: averages of d as `score`, and by them `weight` of the next step."""
        scores: dict[str, Tensor] = {}
        for name, each in found.items():
            kept = _KEPT_SCORE * state[f"{name}/begun"]
            scores[name] = kept * state[f"{name}/score"] + (1 - kept) * each
        floors = torch.cat([state[f"{name}/floor"] for name in scores])
        weights = balanced(torch.cat(list(scores.values())), floors, total=float(len(scores)))
        new = {f"{name}/score": each for name, each in scores.items()}
        new |= {f"{name}/weight": weights[place].reshape(1) for place, name in enumerate(scores)}
        return new | {f"{name}/begun": torch.ones_like(each) for name, each in scores.items()}
