"""EDM's sampler: Heun's second-order method along the probability flow, with optional churn (arXiv:2206.00364)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onestep.sampling._seeds import PerSeedRandom

__all__ = ["Heun"]


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Algorithm 1 of EDM; with churn, algorithm 2. The path is float64, the network is called in its own precision.

    Attributes:
        steps: Steps from `sigma_max` to 0, at least 2.
        sigma_min: The last noise level above 0.
        sigma_max: The first noise level.
        rho: How much the steps crowd at low noise (eq. 5).
        churn: Noise added over the whole path, spread over the steps (S_churn); 0 is deterministic.
        churn_min: Below this noise level none is added (S_min).
        churn_max: Above this noise level none is added (S_max).
        churn_noise: Standard deviation of the added noise (S_noise).
    """

    steps: int
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}; Heun's method takes at least 2 from sigma_max to 0")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"noise levels go 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}")
        if self.rho <= 0 or self.churn < 0:
            raise ValueError(f"rho is above 0 and churn not below, not {self.rho} and {self.churn}")

    @property
    def evaluations(self) -> int:
        """Network evaluations an image: two a step, but one for the last."""
        return 2 * self.steps - 1

    @torch.no_grad()
    def __call__(
        self,
        generator: Callable[..., Tensor],
        noise: Tensor,
        labels: Tensor | None,
        *,
        random: PerSeedRandom | None = None,
    ) -> Tensor:
        """Return images [B, C, H, W], float64; see `onestep.sampling.Sampler`.

        Raises:
            ValueError: There is churn, and `random` is not given.
        """
        levels = self._levels(generator)
        x = noise.to(torch.float64) * levels[0]
        for level, following in zip(levels, [*levels[1:], 0.0], strict=True):
            x, level = self._churned(x, level, random)
            x = _step(generator, x, labels, level=level, following=following)
        return x

    def _levels(self, generator: Callable[..., Tensor]) -> list[float]:
        """Return the noise levels above 0, falling (eq. 5), within what the network takes."""
        lowest = max(self.sigma_min, getattr(generator, "sigma_min", 0.0))
        highest = min(self.sigma_max, getattr(generator, "sigma_max", math.inf))
        ends = highest ** (1 / self.rho), lowest ** (1 / self.rho)
        steps = range(self.steps)
        return [(ends[0] + step / (self.steps - 1) * (ends[1] - ends[0])) ** self.rho for step in steps]

    def _churned(self, x: Tensor, level: float, random: PerSeedRandom | None) -> tuple[Tensor, float]:
        """Raise the noise level a little by fresh noise (algorithm 2)."""
        if self.churn == 0:
            return x, level
        if random is None:
            raise ValueError("churn adds noise: give the PerSeedRandom that the first noise came from as random=")
        # A step outside the range draws too, as in the reference, so the numbers of later steps do not depend on it.
        fresh = random.normal(x.shape[1:], dtype=torch.float64).to(x.device)
        inside = self.churn_min <= level <= self.churn_max
        higher = level * (1 + (min(self.churn / self.steps, math.sqrt(2) - 1) if inside else 0))
        return x + math.sqrt(higher**2 - level**2) * self.churn_noise * fresh, higher


def _step(
    generator: Callable[..., Tensor], x: Tensor, labels: Tensor | None, *, level: float, following: float
) -> Tensor:
    """Go from one noise level to the next (algorithm 1); the last step, to 0, is Euler's."""
    slope = _slope(generator, x, labels, level=level)
    euler = x + (following - level) * slope
    if following == 0:
        return euler
    return x + (following - level) * (0.5 * slope + 0.5 * _slope(generator, euler, labels, level=following))


def _slope(generator: Callable[..., Tensor], x: Tensor, labels: Tensor | None, *, level: float) -> Tensor:
    sigma = torch.full((1,), level, dtype=torch.float64, device=x.device).expand(len(x))
    return (x - generator(x, sigma, labels).to(torch.float64)) / level
