"""EDM's denoising score matching (Karras et al., arXiv:2206.00364, section 5 and Table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onestep.objectives import Batch, Loss, Phase, Players

__all__ = ["Edm"]


@dataclass(frozen=True, kw_only=True)
class Edm:
    """Pre-train a denoiser on all noise levels.

    Attributes:
        p_mean: Mean of ln(sigma).
        p_std: Standard deviation of ln(sigma).
        sigma_data: Standard deviation of the images.
    """

    p_mean: float
    p_std: float
    sigma_data: float

    publishes: ClassVar[str] = "generator"
    needs: ClassVar[tuple[str, ...]] = ("generator",)

    def phases(self) -> tuple[Phase, ...]:
        """Return the one step of the generator."""
        return (Phase(name="generator", trains="generator", loss=self.generator_loss),)

    def generator_loss(self, players: Players, batch: Batch) -> Loss:
        """Return the mean over rows of weight(sigma) |D(images + sigma noise; sigma) - images|^2.

        The square is summed over channels and pixels, as in the reference, so its size grows with the image.
        `denoising_error` is the same with a mean over channels and pixels, for comparing resolutions.
        """
        sigma = self.noise_levels(batch)
        noise = batch.random.normal(*batch.images.shape[1:])
        noisy = batch.images + sigma[:, None, None, None] * noise
        denoised = players["generator"](noisy, sigma, batch.labels)
        errors = (denoised - batch.images).square().flatten(1)
        value = (self.weight(sigma) * errors.sum(dim=1)).mean()
        return Loss(value=value, observed={"denoising_error": value.detach() / errors.shape[1]})

    def noise_levels(self, batch: Batch) -> Tensor:
        """Return sigma [B], ln(sigma) ~ N(p_mean, p_std^2)."""
        return (self.p_mean + self.p_std * batch.random.normal()).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """Return lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Table 1).

        A denoiser that returns its skip connection alone then has loss 1 for each pixel, at every level.
        """
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
