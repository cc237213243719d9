"""The sampler of EDM: Heun's second-order method on the probability flow ODE, optional churn (arXiv:2206.00364)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from onestep.config.constraints import Constraint, NotNegative, Positive, SmallCount
from onestep.sampling import Denoiser, PerSeedRandom

__all__ = ["Heun"]


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Algorithm 1 of EDM; with churn, algorithm 2. The trajectory is float64; the network uses its own precision."""

    steps: SmallCount = 18  # from sigma_max to 0, at least 2; EDM's on CIFAR-10 (Table 1), 40 at 64x64
    sigma_min: Positive = 0.002  # last noise level above 0
    sigma_max: Positive = 80.0  # first noise level
    # Exponent of the schedule; larger values give more steps at low noise (eq. 5).
    rho: Annotated[Positive, Constraint(le=100)] = 7.0
    churn: NotNegative = 0.0  # noise added over the whole trajectory (S_churn); 0 is deterministic
    churn_min: NotNegative = 0.0  # lowest noise level with added noise (S_min)
    churn_max: float = math.inf  # highest noise level with added noise (S_max)
    churn_noise: NotNegative = 1.0  # standard deviation of the added noise (S_noise)
    # Of the network on CUDA devices; by default float32, or bfloat16 for a network of half precision, as EDM's ADM.
    precision: Literal["float32", "tf32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps: got {self.steps}, expected at least 2")
        if not 0 < self.sigma_min < self.sigma_max:
            found = f"{self.sigma_min}, {self.sigma_max}"
            raise ValueError(f"sigma_min, sigma_max: got {found}, expected 0 < sigma_min < sigma_max")
        if self.rho <= 0 or self.churn < 0:
            raise ValueError(f"rho and churn: got {self.rho} and {self.churn}, expected rho > 0 and churn >= 0")

    @property
    def nfe(self) -> int:
        """Two per step, one for the last."""
        return 2 * self.steps - 1

    @torch.no_grad()
    def __call__(
        self, generator: Denoiser, noise: Tensor, condition: Tensor | None, *, random: PerSeedRandom | None = None
    ) -> Tensor:
        """Return images [B, C, H, W], float64; see `Sampler`. Churn without `random` is a ValueError."""
        levels = self._levels(generator)
        x = noise.to(torch.float64) * levels[0]
        for level, following in zip(levels, [*levels[1:], 0.0], strict=True):
            if self.churn > 0:
                x, level = self._churned(x, level, random)
            x = _step(generator, x, condition, level=level, following=following)
        return x

    def _levels(self, generator: Denoiser) -> list[float]:
        """Return the decreasing noise levels above 0 (eq. 5), within the range of the network."""
        lowest = max(self.sigma_min, getattr(generator, "sigma_min", 0.0))
        highest = min(self.sigma_max, getattr(generator, "sigma_max", math.inf))
        ends = highest ** (1 / self.rho), lowest ** (1 / self.rho)
        steps = range(self.steps)
        return [(ends[0] + step / (self.steps - 1) * (ends[1] - ends[0])) ** self.rho for step in steps]

    def _churned(self, x: Tensor, level: float, random: PerSeedRandom | None) -> tuple[Tensor, float]:
        """Add noise and return the images with their higher noise level (algorithm 2)."""
        if random is None:
            raise ValueError("random: got None, expected a PerSeedRandom, because churn adds noise")
        # A step outside the range draws as well, as in the reference, so that later steps do not depend on the range.
        fresh = random.normal(x.shape[1:], dtype=torch.float64).to(x.device)
        inside = self.churn_min <= level <= self.churn_max
        higher = level * (1 + (min(self.churn / self.steps, math.sqrt(2) - 1) if inside else 0))
        return x + math.sqrt(higher**2 - level**2) * self.churn_noise * fresh, higher


def _step(generator: Denoiser, x: Tensor, condition: Tensor | None, *, level: float, following: float) -> Tensor:
    """Integrate from one noise level to the next (algorithm 1); the last step, to 0, is an Euler step."""
    slope = _slope(generator, x, condition, level=level)
    euler = x + (following - level) * slope
    if following == 0:
        return euler
    return x + (following - level) * (0.5 * slope + 0.5 * _slope(generator, euler, condition, level=following))


def _slope(generator: Denoiser, x: Tensor, condition: Tensor | None, *, level: float) -> Tensor:
    sigma = torch.full((1,), level, dtype=torch.float64, device=x.device).expand(len(x))
    return (x - generator(x, sigma, condition).to(torch.float64)) / level
