"""EDM's denoising score matching (Karras et al., arXiv:2206.00364, section 5 and Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from onestep.objectives import Batch, Loss, Phase, Players
from onestep.objectives._augmentation import build_pipe, probability_controls

__all__ = ["Edm"]


@dataclass(frozen=True, kw_only=True)
class Edm:
    """Pre-train a denoiser on all noise levels.

    Attributes:
        p_mean: Mean of ln(sigma).
        p_std: Standard deviation of ln(sigma).
        sigma_data: Standard deviation of the images.
        augment: A choice of augmentations/ with its options, by which images are changed; the network is told how, and
            needs as many inputs for it (`augment_dim`) as the choice has labels. Default: none.
    """

    p_mean: float
    p_std: float
    sigma_data: float
    augment: Mapping[str, Any] | None = None

    publishes: ClassVar[str] = "generator"
    needs: ClassVar[tuple[str, ...]] = ("generator",)

    def __post_init__(self) -> None:
        if probability_controls(self.augment):
            raise ValueError("augment: target: here is no discriminator that could steer the probability; take it away")

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
        images, described = self.augmented(batch)
        noisy = images + sigma[:, None, None, None] * noise
        denoised = players["generator"](noisy, sigma, batch.labels, **described)
        errors = (denoised - images).square().flatten(1)
        value = (self.weight(sigma) * errors.sum(dim=1)).mean()
        return Loss(value=value, observed={"denoising_error": value.detach() / errors.shape[1]})

    def augmented(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images [B, C, H, W], changed if they are to be, and what the network is told of it."""
        if self.augment is None:
            return batch.images, {}
        changed = build_pipe(self.augment)(batch.images, generator=batch.random)
        return changed.images, {"augment_labels": changed.labels}

    def noise_levels(self, batch: Batch) -> Tensor:
        """Return sigma [B], ln(sigma) ~ N(p_mean, p_std^2)."""
        return (self.p_mean + self.p_std * batch.random.normal()).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """Return lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Table 1).

        A denoiser that returns its skip connection alone then has loss 1 for each pixel, at every level.
        """
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
