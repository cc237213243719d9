"""Several evaluations of a multi-step generator (D2O, arXiv:2405.20750, figure 2)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from onestep.chain import chain_levels, chained
from onestep.config.constraints import Few, Positive
from onestep.sampling import Denoiser, PerSeedRandom

__all__ = ["Chain"]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Evaluate the network once at each level of a chain, as in the training of a generator with `steps`.

    A `middle` of `sigma` is one step; one of 0.002, where D2O's law is the identity, returns the images of one step
    with 0.002 / `sigma` of the noise.
    """

    steps: Few = 2
    middle: Positive | None = None  # second noise level of two steps; by default 0.8, as in training
    sigma: Positive = 80.0  # first noise level
    # Of the network on CUDA devices; by default float32, as of one step.
    precision: Literal["float32", "tf32", "bfloat16"] | None = None
    samples_half: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma: got {self.sigma}, expected a noise level above 0")
        chain_levels(self.steps, sigma=self.sigma, middle=self.middle)

    @property
    def nfe(self) -> int:
        """One per step."""
        return self.steps

    @torch.no_grad()
    def __call__(
        self, generator: Denoiser, noise: Tensor, condition: Tensor | None, *, random: PerSeedRandom | None = None
    ) -> Tensor:
        """Return images [B, C, H, W], float64; see `onestep.sampling.Sampler`. `random` is not used."""
        if getattr(generator, "use_fp16", False) and self.precision != "bfloat16":
            generator = functools.partial(generator, force_fp32=True)
        x = noise.to(torch.float64) * self.sigma
        levels = chain_levels(self.steps, sigma=self.sigma, middle=self.middle)
        return chained(generator, x, condition, levels=levels).to(torch.float64)
