"""Consistency distillation (Song et al., arXiv:2303.01469, algorithm 2) as an objective from outside the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onestep.objectives import AverageOf, Batch, Loss, Networks, Origin, Phase, Pretrained, TeacherCopy

__all__ = ["ConsistencyDistillation"]


@dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation:
    """Match the generator at a noise level with its EMA at the next one, along the teacher's ODE.

    Attributes:
        levels: Noise levels.
        sigma_min: The smallest.
        sigma_max: The largest.
        rho: Exponent of their spacing (arXiv:2206.00364, equation 5).
        half_life: Of the target network, in images.
    """

    levels: int = 10
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    half_life: float = 1_000.0

    publishes: ClassVar[str] = "generator"
    samples_in: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels: got {self.levels}, expected at least 2")

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, the frozen teacher and the target, an EMA of the generator."""
        return {
            "generator": Pretrained(),
            "teacher": TeacherCopy(frozen=True),
            "target": AverageOf(role="generator", half_life=self.half_life),
        }

    def phases(self) -> tuple[Phase, ...]:
        """Return the one phase of the generator."""
        return (Phase(name="generator", trains="generator", loss=self.loss),)

    def loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the mean squared difference of generator and target."""
        index = (batch.random.uniform() * (self.levels - 1)).floor()
        high, low = self.sigma(index), self.sigma(index + 1)
        noisy = batch.images + high[:, None, None, None] * batch.random.normal(*batch.images.shape[1:])
        with torch.no_grad():
            slope = (noisy - networks["teacher"](noisy, high, batch.condition)) / high[:, None, None, None]
            nearer = noisy + (low - high)[:, None, None, None] * slope
            target = networks["target"](nearer, low, batch.condition)
        return Loss(value=(networks["generator"](noisy, high, batch.condition) - target).square().mean())

    def sigma(self, index: Tensor) -> Tensor:
        """Return noise levels [B] by index; 0 is the largest."""
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (first + index / (self.levels - 1) * (last - first)) ** self.rho
