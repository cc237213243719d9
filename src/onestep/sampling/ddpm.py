"""The samplers of DDPM (arXiv:2006.11239, algorithm 2) and DDIM (arXiv:2010.02502) on the discrete times of DDPM.

They are written for y = x + sigma n, as all denoisers here: DDPM's image at a time is y / sqrt(1 + sigma^2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from onestep.config.constraints import SmallCount
from onestep.networks._laws import TIMES, ddpm_sigmas
from onestep.sampling import Denoiser, PerSeedRandom

__all__ = ["DDPM"]


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """From noise to an image over some or all of DDPM's thousand times. The trajectory is float64."""

    steps: SmallCount = 1000  # at most 1000
    # Of the noise that each step adds (arXiv:2006.11239, section 3.2): `large` is beta, as in the published samples of
    # CIFAR-10, `small` that of the posterior; `none` is DDIM with eta 0, a deterministic map of the noise.
    variance: Literal["large", "small", "none"] = "large"
    # `leading` takes every (1000 / steps)-th time from 0 on, `linspace` evenly spaced ones from 0 to 999.
    spacing: Literal["leading", "linspace"] = "leading"
    clip: bool = True  # estimates of clean images to [-1, 1]
    # Of the network on CUDA devices; by default float32, or bfloat16 for a network of half precision, as EDM's ADM.
    precision: Literal["float32", "tf32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= TIMES:
            raise ValueError(f"steps: got {self.steps}, expected 1 to {TIMES}")

    @property
    def nfe(self) -> int:
        """One per step."""
        return self.steps

    @property
    def times(self) -> tuple[int, ...]:
        """The times of the steps, which descend to 0."""
        if self.spacing == "leading" or self.steps == 1:
            ascending = [step * (TIMES // self.steps) for step in range(self.steps)]
        else:
            ascending = [round(step * (TIMES - 1) / (self.steps - 1)) for step in range(self.steps)]
        return tuple(reversed(ascending))

    @torch.no_grad()
    def __call__(
        self, generator: Denoiser, noise: Tensor, condition: Tensor | None, *, random: PerSeedRandom | None = None
    ) -> Tensor:
        """Return images [B, C, H, W], float64; see `Sampler`. Added noise without `random` is a ValueError."""
        if self.variance != "none" and random is None:
            raise ValueError("random: got None, expected a PerSeedRandom, because these steps add noise")
        sigmas = ddpm_sigmas()
        levels = [float(sigmas[time]) for time in self.times]
        x = noise.to(torch.float64) * (1 + levels[0] ** 2) ** 0.5
        for level, following in zip(levels, [*levels[1:], 0.0], strict=True):
            sigma = torch.full((1,), level, dtype=torch.float64, device=x.device).expand(len(x))
            estimate = generator(x, sigma, condition).to(torch.float64)
            clean = estimate.clamp(-1, 1) if self.clip else estimate
            if following == 0:
                return clean
            if self.variance == "none":
                x = clean + following / level * (x - estimate)
                continue
            assert random is not None
            kept = (following / level) ** 2  # of y in the mean of the posterior
            fresh = random.normal(x.shape[1:], dtype=torch.float64).to(x.device)
            x = (1 - kept) * clean + kept * x + self._variance(level, following) ** 0.5 * fresh
        raise AssertionError("the last step returns")

    def _variance(self, level: float, following: float) -> float:
        """Return the variance of the noise that a step between two levels adds to y."""
        difference = level**2 - following**2
        if self.variance == "small":
            return (following / level) ** 2 * difference
        return (1 + following**2) / (1 + level**2) * difference
