"""Differentiable augmentation for training GANs on few images (Zhao et al., arXiv:2006.10738)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onestep.augmentations import Augmented, Source
from onestep.augmentations._geometry import pixels_at
from onestep.augmentations._pipe import Draws

__all__ = ["DiffAugment"]

_SHIFT = 0.125
_CUTOUT = 0.2


@dataclass(frozen=True, kw_only=True)
class DiffAugment:
    """Augment every image by the enabled operations, in this order; there are no labels.

    Attributes:
        color: Brightness by an amount in [-1/2, 1/2), saturation by a factor in [0, 2), contrast by one in [1/2, 3/2).
        translation: Shift by up to an eighth of each side, by whole pixels; the border is padded by 0.
        cutout: Zero a square of a fifth of the side (the paper: half) with its centre anywhere in the image.
    """

    color: bool
    translation: bool
    cutout: bool

    def __post_init__(self) -> None:
        for name in ("color", "translation", "cutout"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected true or false")

    def __call__(self, images: Tensor, *, generator: Source) -> Augmented:
        """Augment images [B, C, H, W] in [-1, 1]; labels are [B, 0]."""
        draws = Draws(images, source=generator)
        chosen = ((self.color, _recoloured), (self.translation, _shifted), (self.cutout, _cut_out))
        for enabled, operation in chosen:
            images = operation(images, draws) if enabled else images
        return Augmented(images=images, labels=torch.zeros(draws.rows, 0, device=draws.device))


def _recoloured(images: Tensor, draws: Draws) -> Tensor:
    brightness, saturation, contrast = (draws.uniform(1, 1, 1).to(images.dtype) for _ in range(3))
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (saturation * 2) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def _shifted(images: Tensor, draws: Draws) -> Tensor:
    largest = [int(side * _SHIFT + 0.5) for side in (draws.height, draws.width)]
    down, right = (draws.integers(low=-most, high=most + 1) for most in largest)
    y = torch.arange(draws.height, device=images.device) + down[:, None]
    x = torch.arange(draws.width, device=images.device) + right[:, None]
    inside = ((y >= 0) & (y < draws.height))[:, None, :, None] & ((x >= 0) & (x < draws.width))[:, None, None, :]
    return pixels_at(images, y=y.clamp(0, draws.height - 1), x=x.clamp(0, draws.width - 1)) * inside


def _cut_out(images: Tensor, draws: Draws) -> Tensor:
    y, x = (_span(draws, side=side) for side in (draws.height, draws.width))
    return images * ~(y[:, None, :, None] & x[:, None, None, :])


def _span(draws: Draws, *, side: int) -> Tensor:
    """Return the pixels along a side within a random span of a fifth of it, rounded: bool [B, side]."""
    length = int(side * _CUTOUT + 0.5)
    first = draws.integers(low=0, high=side + 1 - length % 2) - length // 2
    place = torch.arange(side, device=draws.device)
    return (place >= first[:, None]) & (place < first[:, None] + length)
