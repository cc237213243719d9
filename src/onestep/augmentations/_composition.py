"""A pipe as a table of operations, of which the config says how likely each is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from onestep.augmentations._draws import Draws
from onestep.augmentations._warp import warp


@dataclass(frozen=True, kw_only=True)
class Change:
    """What an operation does to the rows of a batch.

    Attributes:
        matrix: [B, 3, 3] from coordinates of the result to those of the image; or [B, 4, 4] from colours to colours.
        labels: Its description [B, L].
    """

    matrix: Tensor
    labels: Tensor


Operation = Callable[[Draws, float], Change]
"""Draws a change: a strength for each row first, and then whether the row is changed, at the given chance."""

_Step = TypeVar("_Step")


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """How likely each operation is: a common probability times a multiplier of its own.

    Attributes:
        probability: At least 0.
        multipliers: By name of the operation; one that is absent, or 0, is not part of the pipe.
    """

    probability: float
    multipliers: Mapping[str, float]

    def select(self, table: Iterable[tuple[str, _Step]]) -> list[tuple[float, _Step]]:
        """Return the operations of a table that are part of the pipe, in its order, with the chance of each."""
        chances = [(self.multipliers.get(name, 0.0), step) for name, step in table]
        return [(multiplier * self.probability, step) for multiplier, step in chances if multiplier > 0]

    def draw(self, table: Iterable[tuple[str, Operation]], draws: Draws) -> list[Change]:
        """Return what the operations of a table do to a batch."""
        return [operation(draws, chance) for chance, operation in self.select(table)]

    def check(self, *, known: Iterable[str]) -> None:
        """Refuse what cannot be a probability or a multiplier.

        Raises:
            ValueError: A number is negative, or an operation is none of those known.
        """
        if not self.probability >= 0:
            raise ValueError(f"probability {self.probability}: expected 0 or a positive number")
        known = list(dict.fromkeys(known))
        for name, multiplier in self.multipliers.items():
            if name not in known:
                raise ValueError(f"operation {name!r}: expected one of {', '.join(known)}")
            if not multiplier >= 0:
                raise ValueError(f"multiplier {multiplier} of {name}: expected 0 or a positive number")


def move(images: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return images [B, C, H, W] under all changes of the plane, of which the first is the last to act."""
    if not changes:
        return images
    return warp(images, reduce(torch.matmul, [change.matrix for change in changes]))


def recolour(images: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return images [B, C, H, W] under all changes of colour, of which the first acts first.

    A grey image, C = 1, becomes the mean of the colours that it would take as (grey, grey, grey).

    Raises:
        ValueError: C is neither 3 nor 1.
    """
    if not changes:
        return images
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images of {images.shape[1]} channels: changes of colour expect 3 (RGB) or 1 (grey)")
    matrix = reduce(torch.matmul, [change.matrix for change in reversed(changes)])[:, :3].to(images.dtype)
    if images.shape[1] == 1:
        grey = matrix.mean(dim=1, keepdim=True)
        return images * grey[:, :, :3].sum(dim=2)[..., None, None] + grey[:, :, 3, None, None]
    return torch.einsum("brc,bchw->brhw", matrix[:, :, :3], images) + matrix[:, :, 3, None, None]


def joined(draws: Draws, labels: Iterable[Tensor]) -> Tensor:
    """Return all labels side by side, float32 [B, L]."""
    return torch.cat([torch.zeros(draws.rows, 0, device=draws.device), *(each.float() for each in labels)], dim=1)
