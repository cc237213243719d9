"""The contract of an augmentation: random changes of images, and labels that describe them.

Legend: B images, C H W an image, L labels per image. `images` are float32 in [-1, 1]; augmented ones may leave that
range. Each image has its own draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """An augmented batch."""

    images: Tensor  # [B, C, H, W], differentiable with respect to the given ones
    # Descriptions of the changes, float32 [B, L], an input of networks; L depends on the options only, 0 for none.
    labels: Tensor


class RowNumbers(Protocol):
    """Random numbers with a stream per image, so that a draw does not depend on how a batch is split."""

    def normal(self, *shape: int) -> Tensor:
        """Return new standard normal numbers, float32 [B, *shape]."""
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Return new uniform numbers in [0, 1), float32 [B, *shape]."""
        ...


Source: TypeAlias = torch.Generator | RowNumbers | None
"""Source of random numbers: one stream for the batch, on the generator's device; one stream per image; or None, the
global generator of the images' device."""


class Augmentation(Protocol):
    """The class of each file in this folder: a frozen dataclass of options."""

    def __call__(self, images: Tensor, *, generator: Source) -> Augmented:
        """Augment images [B, C, H, W]; ValueError: the pipe does not support this number of channels.

        With one stream per image, the result for an image does not depend on the others (up to rounding, as the
        computed border depends on the whole batch).
        """
        ...


def visible(discriminator: Any, images: Tensor, batch: Any) -> Tensor:
    """Return images [n B, C, H, W] as a discriminator sees them, in a `batch` of an objective, before augmentations.

    One whose frozen networks see pictures gets those of latents, decoded, with a gradient (`Batch.pictures`); another
    one gets the latents. Real images are decoded latents, too, so that errors of the decoder are those of both.
    """
    decodes = batch.pictures is not None and getattr(discriminator, "sees_pictures", False)
    return batch.pictures(images) if decodes else images


def prepared(discriminator: Any, images: Tensor, batch: Any) -> Tensor:
    """Return images [n B, C, H, W] as the frozen part of a discriminator takes them, in a `batch` of an objective.

    Those with a method `prepared` add noise, for example (`onestep.discriminators`); others take images as they are.
    """
    own = getattr(discriminator, "prepared", None)
    return images if own is None else own(images, random=batch.random, condition=batch.condition)
