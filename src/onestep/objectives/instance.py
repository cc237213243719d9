"""Instance losses: consistency and progressive distillation with the constants of D2O, alone or beside its GAN loss.

The comparisons of D2O (arXiv:2405.20750, figure 4; github.com/Zyriix/D2O). The generator at a noise level is trained
towards a target made of the teacher's and its own moves between levels; `_moves.py` has the moves and the targets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from onestep import components
from onestep.config.constraints import Constraint, Images, Positive
from onestep.objectives import AverageOf, Batch, Loss, Networks, Origin, Phase, Pretrained, TeacherCopy
from onestep.objectives._moves import Grid, Moves, drawn_levels, shares

__all__ = ["Instance"]

_GENERATOR, _TEACHER, _TARGET = "generator", "teacher", "target"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The mean over images of a distance between the generator at a random noise level and its target.

    Scale: the loss is `weight` times a mean over images, whatever the batch size. In the reference it is added with
    weight 1 to a GAN loss that is summed over the images of a GPU. So `weight: 1.0` beside `d2o` is the reference's
    where `rows_per_rank` is, 64 for 256 images on 4 GPUs; beside a GAN loss with `rows_per_rank: 1.0` the same weight
    counts 64 times as much. Without a loss beside it the scale has no effect under Adam.

    Attributes:
        kind: `cd`, consistency distillation; `ctm`, consistency trajectories; `pd`, progressive distillation; `rcd`,
            consistency from the highest level.
        steps: Steps N of the noise grid; of `pd` a power of two, without which the teacher is never used.
        distance: A file of distances/ with its options.
        weight: Factor of the loss.
        weighting: Factor by the noise level, as in consistency models: 1; or the signal-to-noise ratio r = 1 / sigma^2
            as r (`snr`), r + 1 (`snr_plus_one`), max(r, 1) (`truncated_snr`) or r + 1 / sigma_data^2 (`karras`).
        target: Whose steps make the target, beside the teacher's: the generator's own (`student`) as in D2O, or those
            of its EMA (`ema`) as in consistency models.
        target_half_life: Of this EMA, in images.
        beside: An objective of a generator with its options, such as `{name: d2o, ...}`, whose loss is added in its
            generator phase, and whose other phases stay as they are; None trains with this loss alone.
        sigma: The highest noise level, at which the generator is sampled.
        sigma_data: Standard deviation of the images, for `karras`.
    """

    kind: Literal["cd", "ctm", "pd", "rcd"]
    steps: Annotated[int, Constraint(ge=2, le=100_000)] = 18  # 18 and 40: CM and CTM; 1024: the reference's default
    distance: Mapping[str, Any]
    weight: Positive = 1.0
    weighting: Literal["uniform", "snr", "snr_plus_one", "truncated_snr", "karras"] = "uniform"
    target: Literal["student", "ema"] = "student"
    target_half_life: Images | None = None
    beside: Mapping[str, Any] | None = None
    sigma: Positive = 80.0
    sigma_data: Positive = 0.5

    publishes: ClassVar[str] = _GENERATOR
    samples_in: ClassVar[int | None] = 1
    # As of D2O.
    betas: ClassVar[tuple[float, float]] = (0.0, 0.99)
    preconditioning: ClassVar[str] = "d2o"
    parts: ClassVar[Mapping[str, str]] = {"distance": "distances", "beside": "objectives"}

    def __post_init__(self) -> None:
        if self.kind == "pd" and self.steps & (self.steps - 1):
            raise ValueError(f"steps: got {self.steps}, expected a power of two for pd, which halves intervals")
        if (self.target == "ema") != (self.target_half_life is not None):
            expected = "a half-life in images" if self.target == "ema" else "none"
            found = f"target_half_life: got {self.target_half_life}, expected {expected}"
            raise ValueError(f"{found} with target: {self.target}")
        own = self._own_networks()  # refuses a distance that is none
        if self._beside is None:
            return
        if self._beside.publishes != _GENERATOR or not any(map(_trains_generator, self._beside.phases())):
            raise ValueError(f"beside: got {self.beside}, expected an objective that trains a generator image by image")
        if (self._beside.samples_in or 1) > 1:
            raise ValueError(f"beside: got {self.beside}, expected a generator of one step")
        if getattr(self._beside, "sigma", self.sigma) != self.sigma:
            raise ValueError(f"sigma: got {self.sigma}, expected {self._beside.sigma}, that of `beside`")
        if common := own.keys() & self._beside.networks().keys():
            raise ValueError(f"beside: got an objective with the roles {sorted(common)}, which this one has, too")

    @functools.cached_property
    def _distance(self) -> Any:
        return components.build_part("distances", self.distance)

    @functools.cached_property
    def _beside(self) -> Any:
        return None if self.beside is None else components.build_part("objectives", self.beside)

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, or the networks of `beside`; then the teacher, the target's EMA and the distance's."""
        first = {_GENERATOR: Pretrained()} if self._beside is None else self._beside.networks()
        return {**first, **self._own_networks()}

    def _own_networks(self) -> dict[str, Origin]:
        own: dict[str, Origin] = {_TEACHER: TeacherCopy(frozen=True)}
        if self.target_half_life is not None:
            own[_TARGET] = AverageOf(role=_GENERATOR, half_life=self.target_half_life)
        return {**own, **self._distance.networks()}

    def phases(self) -> tuple[Phase, ...]:
        """Return the generator's step; with `beside` its phases, the first of the generator with both losses."""
        if self._beside is None:
            return (Phase(name=_GENERATOR, trains=_GENERATOR, loss=self.instance_loss),)
        phases: list[Phase] = list(self._beside.phases())
        index = next(index for index, phase in enumerate(phases) if _trains_generator(phase))
        phases[index] = replace(phases[index], loss=functools.partial(self.both_losses, phases[index].loss))
        return tuple(phases)

    def spared(self) -> dict[str, dict[str, float]]:
        """Return the passes of its moves that a step without numbers makes beyond those of an average one."""
        phase = next(phase.name for phase in self.phases() if _trains_generator(phase))
        moves, heun, euler = shares(self.kind, steps=self.steps)
        moving = _GENERATOR if self.target == "student" else _TARGET
        return {phase: {_TEACHER: 2 * (moves - heun), moving: moves - euler}}

    def both_losses(self, beside: Callable[[Networks, Batch], Loss], networks: Networks, batch: Batch) -> Loss:
        """Return the sum of a loss and the instance loss; the former draws first, and so as it does alone."""
        one, other = beside(networks, batch), self.instance_loss(networks, batch)
        observed = {**one.observed, **other.observed, "beside": one.value.detach()}
        return Loss(value=one.value + other.value, observed=observed)

    def instance_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return `weight` times the mean over images of weighting(sigma) distance(G(x + sigma z; sigma), target)."""
        grid = Grid(steps=self.steps, sigma_max=self.sigma)
        noise = batch.random.normal(*batch.images.shape[1:])
        levels = drawn_levels(self.kind, steps=self.steps, random=batch.random)
        sigma = grid.sigma(levels.t).float()
        noisy = batch.images + sigma[:, None, None, None] * noise
        with torch.no_grad():
            moving = networks[_GENERATOR if self.target == "student" else _TARGET]
            moves = Moves(
                grid=grid,
                student=lambda images, level, _, condition: moving(images, level, condition),
                teacher=networks[_TEACHER],
                condition=batch.condition,
            )
            target = moves.target(self.kind, noisy, levels).float()
        generated = networks[_GENERATOR](noisy, sigma, batch.condition)
        distances = self._distance(generated, target, networks=networks)
        value = self.weight * (self.weight_at(sigma) * distances).mean()
        return Loss(value=value, observed={"instance": distances.detach().mean()})

    def weight_at(self, sigma: Tensor) -> Tensor:
        """Return the weighting's factor at noise levels [B]."""
        ratio = sigma**-2
        if self.weighting == "uniform":
            return torch.ones_like(ratio)
        if self.weighting == "truncated_snr":
            return ratio.clamp(min=1.0)
        return ratio + {"snr": 0.0, "snr_plus_one": 1.0, "karras": self.sigma_data**-2}[self.weighting]


def _trains_generator(phase: Phase) -> bool:
    # A coupled loss is of all images of a step, so none of some of them can be added.
    return phase.trains == _GENERATOR and not phase.lazy_regularizer and phase.coupled is None
