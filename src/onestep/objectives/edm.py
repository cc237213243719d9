"""EDM's denoising score matching (Karras et al., arXiv:2206.00364, section 5 and Table 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from onestep.config.constraints import LogSigma, Positive
from onestep.objectives import Batch, Loss, Networks, Origin, Phase, Pretrained
from onestep.objectives._augmentation import build_pipe, probability_controls

__all__ = ["Edm"]

_LEVELS = {"fixed": ("sigma",), "log_uniform": ("sigma_min", "sigma_max")}  # the options of each law of ours


@dataclass(frozen=True, kw_only=True)
class Edm:
    """Pre-train a denoiser on all noise levels.

    Attributes:
        p_mean: Mean of ln(sigma), for `lognormal`.
        p_std: Standard deviation of ln(sigma), for `lognormal`.
        sigma_data: Standard deviation of the images.
        augment: An augmentation (a file of augmentations/) with its options, applied to the images. Its labels are an
            input of the network, whose `augment_dim` must equal their number. Default: none.
        noise: Law of the noise levels. `lognormal`, the default, is that of EDM; `fixed` has one level; `log_uniform`
            has ln(sigma) uniform between two levels: for teachers of fewer noise levels.
        sigma: The level of `fixed`.
        sigma_min: The lowest level of `log_uniform`; `sigma_max` is the highest.
    """

    p_mean: LogSigma = -1.2  # this and the two below: Table 1, "Training", and appendix F.1
    p_std: Positive = 1.2
    sigma_data: Positive = 0.5
    augment: Mapping[str, Any] | None = None
    noise: Literal["lognormal", "fixed", "log_uniform"] | None = None
    sigma: Positive | None = None
    sigma_min: Positive | None = None
    sigma_max: Positive | None = None

    publishes: ClassVar[str] = "generator"
    samples_in: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if probability_controls(self.augment):
            raise ValueError("augment.target: got a target, expected none without a discriminator. Fix: remove it")
        needed = _LEVELS.get(self.noise or "", ())
        for key in ("sigma", "sigma_min", "sigma_max"):
            if (getattr(self, key) is None) == (key in needed):
                found = f"got {getattr(self, key)} with noise: {self.noise or 'lognormal'}"
                fix = "expected a level. Fix: give it" if key in needed else "expected none. Fix: remove it"
                raise ValueError(f"{key}: {found}, {fix}")
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: got {self.sigma_min}, expected a level below sigma_max, {self.sigma_max}")

    def networks(self) -> Mapping[str, Origin]:
        """Return the denoiser."""
        return {"generator": Pretrained()}

    def phases(self) -> tuple[Phase, ...]:
        """Return the single phase."""
        return (Phase(name="generator", trains="generator", loss=self.generator_loss),)

    def generator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return `loss_at` at noise levels of the law."""
        return self.loss_at(self.noise_levels(batch), networks["generator"], batch)

    def loss_at(self, sigma: Tensor, denoiser: Callable[..., Tensor], batch: Batch) -> Loss:
        """Return the mean over images of weight(sigma) |D(images + sigma noise; sigma) - images|^2, with sigma [B].

        The square is summed over channels and pixels, as in the reference, so it scales with the image size.
        `denoising_error` is the mean over channels and pixels instead, comparable between resolutions.
        """
        noise = batch.random.normal(*batch.images.shape[1:])
        images, augment_labels = self.augmented(batch)
        noisy = images + sigma[:, None, None, None] * noise
        denoised = denoiser(noisy, sigma, batch.condition, **augment_labels)
        errors = (denoised - images).square().flatten(1)
        value = (self.weight(sigma) * errors.sum(dim=1)).mean()
        return Loss(value=value, observed={"denoising_error": value.detach() / errors.shape[1]})

    def augmented(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images [B, C, H, W], augmented where configured, and the keyword argument that describes it."""
        if self.augment is None:
            return batch.images, {}
        augmented = build_pipe(self.augment)(batch.images, generator=batch.random)
        return augmented.images, {"augment_labels": augmented.labels}

    def noise_levels(self, batch: Batch) -> Tensor:
        """Return sigma [B], ln(sigma) ~ N(p_mean, p_std^2) unless `noise` is another law.

        Each law takes one normal draw, so that an image has the same noise with all of them.
        """
        normal = batch.random.normal()
        if self.sigma is not None:
            return torch.full_like(normal, self.sigma)
        if self.sigma_min is not None and self.sigma_max is not None:
            lowest, highest = math.log(self.sigma_min), math.log(self.sigma_max)
            return (lowest + (highest - lowest) * torch.special.ndtr(normal)).exp()
        return (self.p_mean + self.p_std * normal).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """Return lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Table 1).

        A denoiser that returns its skip connection only then has loss 1 per pixel, at every level.
        """
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
