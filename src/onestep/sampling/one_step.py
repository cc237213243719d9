"""One evaluation of the network, from noise to image (D2O, arXiv:2506.09376)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from onestep.config.constraints import Positive
from onestep.sampling import Denoiser, PerSeedRandom

__all__ = ["OneStep"]


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """Scale the noise by sigma, the same noise level as in training, and evaluate the network once."""

    sigma: Positive = 80.0
    # Of the network on CUDA devices; by default float32, as in the reference: trained in half precision, sampled in
    # single precision.
    precision: Literal["float32", "tf32", "bfloat16"] | None = None
    nfe: ClassVar[int] = 1
    samples_half: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma: got {self.sigma}, expected a noise level above 0")

    @torch.no_grad()
    def __call__(
        self, generator: Denoiser, noise: Tensor, condition: Tensor | None, *, random: PerSeedRandom | None = None
    ) -> Tensor:
        """Return images [B, C, H, W], float64; see `onestep.sampling.Sampler`. `random` is not used."""
        x = noise.to(torch.float64) * self.sigma
        sigma = torch.full((len(x),), self.sigma, dtype=torch.float64, device=x.device)
        if getattr(generator, "use_fp16", False) and self.precision != "bfloat16":
            return generator(x, sigma, condition, force_fp32=True).to(torch.float64)
        return generator(x, sigma, condition).to(torch.float64)
