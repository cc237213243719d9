"""The contract of an augmentation: images to images that are changed at random, and a description of the change.

Legend: B images, C H W an image, L numbers that describe a change. `images` are float32 in [-1, 1]; augmented ones may
leave that range. Each row is changed by its own draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """What became of a batch.

    Attributes:
        images: The changed images [B, C, H, W], differentiable with respect to the given ones.
        labels: What was done to each, float32 [B, L], for networks that are told of it. L follows from the options
            alone, and is 0 where a pipe does not describe what it does.
    """

    images: Tensor
    labels: Tensor


class RowNumbers(Protocol):
    """Random numbers of which each row owns a stream, so that a draw does not depend on how rows are split."""

    def normal(self, *shape: int) -> Tensor:
        """Return new standard normal numbers, float32 [B, *shape]."""
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Return new uniform numbers in [0, 1), float32 [B, *shape]."""
        ...


Source: TypeAlias = torch.Generator | RowNumbers | None
"""Where random numbers come from: one stream for the batch, on whatever device the generator lives; one stream a row;
or, None, the global generator of the images' device."""


class Augmentation(Protocol):
    """What the files of this folder hold: frozen dataclasses of options."""

    def __call__(self, images: Tensor, *, generator: Source) -> Augmented:
        """Change images [B, C, H, W].

        Args:
            images: The batch.
            generator: Where the random numbers come from. With one stream a row, what becomes of a row does not depend
                on the others (up to rounding, as the border that is computed follows from the whole batch).

        Raises:
            ValueError: The images have a number of channels whose colours the pipe cannot change.
        """
        ...
