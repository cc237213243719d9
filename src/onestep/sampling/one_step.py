"""One evaluation of the network, from noise to image (D2O, arXiv:2506.09376)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onestep.sampling._seeds import PerSeedRandom

__all__ = ["OneStep"]


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """Scale the noise, evaluate once.

    Attributes:
        sigma: The noise level, the one the generator was trained at.
    """

    sigma: float = 80.0
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma is a noise level above 0, not {self.sigma}")

    @torch.no_grad()
    def __call__(
        self,
        generator: Callable[..., Tensor],
        noise: Tensor,
        labels: Tensor | None,
        *,
        random: PerSeedRandom | None = None,
    ) -> Tensor:
        """Return images [B, C, H, W], float64; see `onestep.sampling.Sampler`. It adds no noise of `random`."""
        x = noise.to(torch.float64) * self.sigma
        sigma = torch.full((len(x),), self.sigma, dtype=torch.float64, device=x.device)
        if getattr(generator, "use_fp16", False):
            # As in the reference: trained in half precision, sampled in single.
            return generator(x, sigma, labels, force_fp32=True).to(torch.float64)
        return generator(x, sigma, labels).to(torch.float64)
