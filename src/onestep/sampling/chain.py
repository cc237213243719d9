"""Several evaluations of a multi-step generator (D2O, arXiv:2405.20750, figure 2), or of a consistency model."""

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
    with 0.002 / `sigma` of the noise. With `noise: new` an estimate gets new noise of the next level in place of being
    moved there: multistep consistency sampling (arXiv:2303.01469, algorithm 1), for generators of objectives
    `instance` and `easy_consistency`, which makes two steps with a `middle` of 0.821 on CIFAR-10.
    """

    steps: Few = 2
    middle: Positive | None = None  # second noise level of two steps; by default 0.8, as in training
    sigma: Positive = 80.0  # first noise level
    noise: Literal["new"] | None = None  # at the next level; by default what moving the image leaves
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
        """Return images [B, C, H, W], float64; see `onestep.sampling.Sampler`. ValueError: new noise, no `random`."""
        if self.noise == "new" and random is None:
            raise ValueError("random: got None, expected a PerSeedRandom, because each step adds noise")
        if getattr(generator, "use_fp16", False) and self.precision != "bfloat16":
            generator = functools.partial(generator, force_fp32=True)
        x = noise.to(torch.float64) * self.sigma
        levels = chain_levels(self.steps, sigma=self.sigma, middle=self.middle)
        if random is None or self.noise is None:
            return chained(generator, x, condition, levels=levels).to(torch.float64)
        estimate = chained(generator, x, condition, levels=levels[:1]).to(torch.float64)
        for level in levels[1:]:
            fresh = random.normal(x.shape[1:], dtype=torch.float64).to(x.device)
            estimate = chained(generator, estimate + level * fresh, condition, levels=(level,)).to(torch.float64)
        return estimate
