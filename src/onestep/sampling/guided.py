"""Guidance: Heun's method on the estimate of a network, moved away from that of a weaker one.

Autoguidance (Karras et al., arXiv:2406.02507) takes a smaller or less trained network, classifier-free guidance (Ho and
Salimans, arXiv:2207.12598) one without the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from onestep.config.constraints import Constraint, Positive, SmallCount, Text
from onestep.sampling import Denoiser, PerSeedRandom
from onestep.sampling.heun import Heun

__all__ = ["Guided"]


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Heun's method with D_guide + weight (D - D_guide) in place of D; of each step both networks take part.

    The guide is another network, which gets the class if it takes one: a weaker one of the same images, or one without
    classes. Without a guide it is the network itself without the class, as it is trained where its option
    `label_dropout` is above 0: that of EDM's published networks is 0, that of DiT and SiT 0.1.
    """

    weight: Annotated[float, Constraint(ge=0, le=100)]  # 1 is no guidance; 1.4 to 2.1 in EDM2
    guide: Text | None = None  # an entry of `teachers`, of the config or in `results/`
    steps: SmallCount = 32  # as of `heun`, and the next three; EDM2's
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Annotated[Positive, Constraint(le=100)] = 7.0
    # How many of the first channels are guided; the others are those of D. DiT's and SiT's authors guide 3 of 4.
    channels: SmallCount | None = None
    # Of both networks on CUDA devices; by default as of `heun`, by the network that is guided.
    precision: Literal["float32", "tf32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        self._solver()

    @property
    def nfe(self) -> int:
        """Those of both networks: twice as many as of `heun`."""
        return 2 * self._solver().nfe

    def with_guide(self, network: Any) -> GuidedBy:
        """Return the sampler with the network of its guide, on the device of the one that it guides."""
        return GuidedBy(sampler=self, network=network)

    def __call__(
        self, generator: Denoiser, noise: Tensor, condition: Tensor | None, *, random: PerSeedRandom | None = None
    ) -> Tensor:
        """Return images [B, C, H, W], float64; see `onestep.sampling.Sampler`. `random` is not used.

        ValueError: The guide's network is missing, or there is no class that a guide could do without.
        """
        if self.guide is not None:
            raise ValueError(f"guide: got no network of {self.guide}. Fix: call the sampler of with_guide(network)")
        if condition is None:
            raise ValueError("guide: got none for a network without classes, expected a weaker network")
        return self.solve(generator, generator, noise, condition, weak_condition=None)

    def solve(
        self,
        generator: Denoiser,
        guide: Denoiser,
        noise: Tensor,
        condition: Tensor | None,
        *,
        weak_condition: Tensor | None,
    ) -> Tensor:
        """Return the images of a network and its guide, each with its own condition."""
        combined = _Combined(
            generator=generator,
            guide=guide,
            weak_condition=weak_condition,
            weight=self.weight,
            channels=self.channels,
            sigma_min=max(getattr(each, "sigma_min", 0.0) for each in (generator, guide)),
            sigma_max=min(getattr(each, "sigma_max", math.inf) for each in (generator, guide)),
        )
        return self._solver()(combined, noise, condition)

    def _solver(self) -> Heun:
        return Heun(steps=self.steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)


@dataclass(frozen=True, kw_only=True)
class GuidedBy:
    """A guided sampler with the network of its guide."""

    sampler: Guided
    network: Any

    @property
    def nfe(self) -> int:
        """Those of both networks."""
        return self.sampler.nfe

    @property
    def precision(self) -> str | None:
        """As of the sampler."""
        return self.sampler.precision

    def __call__(
        self, generator: Denoiser, noise: Tensor, condition: Tensor | None, *, random: PerSeedRandom | None = None
    ) -> Tensor:
        """Return images as `Guided` does. ValueError: The networks are not of the same images, or of other classes."""
        for key in ("img_resolution", "img_channels", "label_dim"):
            own, found = getattr(generator, key, None), getattr(self.network, key, None)
            if own is not None and found != own and not (key == "label_dim" and found == 0):
                raise ValueError(f"guide: got {key} {found}, expected {own}, as of the network that it guides")
        self.network.image_type = getattr(generator, "image_type", None)
        weak = condition if self.network.label_dim else None
        return self.sampler.solve(generator, self.network, noise, condition, weak_condition=weak)


@dataclass(frozen=True, kw_only=True)
class _Combined:
    generator: Denoiser
    guide: Denoiser
    weak_condition: Tensor | None
    weight: float
    channels: int | None
    sigma_min: float
    sigma_max: float

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
        strong = self.generator(x, sigma, condition).to(torch.float64)
        guided = self.guide(x, sigma, self.weak_condition).to(torch.float64).lerp(strong, self.weight)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], strong[:, self.channels :]], dim=1)
