"""Distribution matching with a trained score network (arXiv:2311.18828, arXiv:2305.18455) as an objective from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onestep.objectives import Batch, Loss, Networks, Origin, Phase, Pretrained, TeacherCopy

__all__ = ["DistributionMatching"]


@dataclass(frozen=True, kw_only=True)
class DistributionMatching:
    """Move generated images along the difference of the teacher's score and that of a network trained on them.

    Attributes:
        sigma: Noise level from which the generator starts.
        every: The generator takes a step at every `every`-th step of the score network.
    """

    sigma: float = 80.0
    every: int = 5

    publishes: ClassVar[str] = "generator"
    samples_in: ClassVar[int | None] = 1

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, the frozen teacher and the trained copy of it."""
        return {"generator": Pretrained(), "teacher": TeacherCopy(frozen=True), "fake": TeacherCopy(frozen=False)}

    def phases(self) -> tuple[Phase, ...]:
        """Return the two phases; the generator's is not a regularizer."""
        return (
            Phase(name="fake", trains="fake", loss=self.fake_loss),
            Phase(name="generator", trains="generator", loss=self.generator_loss, every=self.every),
        )

    def generate(self, networks: Networks, batch: Batch) -> Tensor:
        """Return images [B, C, H, W] in one step."""
        noise = batch.random.normal(*batch.images.shape[1:])
        return networks["generator"](self.sigma * noise, noise.new_full((len(noise),), self.sigma), batch.condition)

    def noisy(self, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return noisy images and their levels [B], log-normal."""
        sigma = (-1.2 + 1.2 * batch.random.normal()).exp()
        return images + sigma[:, None, None, None] * batch.random.normal(*images.shape[1:]), sigma

    def fake_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the denoising error on generated images."""
        with torch.no_grad():
            generated = self.generate(networks, batch)
        noisy, sigma = self.noisy(generated, batch)
        return Loss(value=(networks["fake"](noisy, sigma, batch.condition) - generated).square().mean())

    def generator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return a scalar whose gradient moves generated images along the difference of the two denoisers."""
        generated = self.generate(networks, batch)
        with torch.no_grad():
            noisy, sigma = self.noisy(generated, batch)
            real = networks["teacher"](noisy, sigma, batch.condition)
            difference = networks["fake"](noisy, sigma, batch.condition) - real
            scale = (generated - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-4)
            target = generated - difference / scale
        return Loss(value=(generated - target).square().mean() / 2)
