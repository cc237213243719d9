"""A pipe of random operations: their random numbers, probabilities and strengths, and their application."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from onestep.augmentations import RowNumbers, Source
from onestep.augmentations._geometry import warp

# Strengths of both pipes (Karras et al., arXiv:2006.06676, appendix B; arXiv:2206.00364, F.2).

SHIFT = 0.125
"""Largest shift by whole pixels and standard deviation of fractional shifts, as shares of the image size."""

SCALE = 0.2
"""Standard deviation of log2 of the scale factor."""

STRETCH = 0.2
"""Standard deviation of log2 of the anisotropic scale factor, which preserves the area."""

BRIGHTNESS = 0.2
"""Standard deviation of the amount added to all colours."""

CONTRAST = 0.5
"""Standard deviation of log2 of the factor on all colours."""

SATURATION = 1.0
"""Standard deviation of log2 of the factor on the component orthogonal to grey."""


class _Numbers(Protocol):
    """Random numbers of B images; their order in a stream is the reference's, call by call."""

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), float32 [B, *shape]."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, float32 [B, *shape]."""
        ...

    def uniform_pair(self) -> Tensor:
        """Return uniform numbers in [0, 1), float32 [2, B]; one stream gives first all of row 0, then all of row 1."""
        ...

    def normal_pair(self) -> Tensor:
        """Return standard normal numbers, float32 [2, B], likewise."""
        ...

    def integers(self, *, low: int, high: int) -> Tensor:
        """Return integers in [low, high), int64 [B]."""
        ...


@dataclass(frozen=True, kw_only=True)
class _OneStream:
    """Numbers from one generator for all images; None is the global generator of `device`."""

    generator: torch.Generator | None
    rows: int
    device: torch.device

    @property
    def origin(self) -> torch.device:
        return self.device if self.generator is None else self.generator.device

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand((self.rows, *shape), generator=self.generator, device=self.origin).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn((self.rows, *shape), generator=self.generator, device=self.origin).to(self.device)

    def uniform_pair(self) -> Tensor:
        return torch.rand((2, self.rows), generator=self.generator, device=self.origin).to(self.device)

    def normal_pair(self) -> Tensor:
        return torch.randn((2, self.rows), generator=self.generator, device=self.origin).to(self.device)

    def integers(self, *, low: int, high: int) -> Tensor:
        return torch.randint(low, high, (self.rows,), generator=self.generator, device=self.origin).to(self.device)


@dataclass(frozen=True, kw_only=True)
class _StreamPerRow:
    """Numbers from one stream per image."""

    numbers: RowNumbers

    def uniform(self, *shape: int) -> Tensor:
        return self.numbers.uniform(*shape)

    def normal(self, *shape: int) -> Tensor:
        return self.numbers.normal(*shape)

    def uniform_pair(self) -> Tensor:
        return self.numbers.uniform(2).T

    def normal_pair(self) -> Tensor:
        return self.numbers.normal(2).T

    def integers(self, *, low: int, high: int) -> Tensor:
        return (self.numbers.uniform() * (high - low)).long() + low


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random numbers for a batch of images of one size.

    Attributes:
        rows: Number of images.
        height: Of an image, in pixels.
        width: Of an image, in pixels.
        device: Of the images.
        numbers: The random numbers.
    """

    rows: int
    height: int
    width: int
    device: torch.device
    numbers: _Numbers

    @classmethod
    def of(cls, images: Tensor, *, source: Source) -> Draws:
        """Return the random numbers for images [B, C, H, W]."""
        rows, _, height, width = images.shape
        if source is None or isinstance(source, torch.Generator):
            numbers: _Numbers = _OneStream(generator=source, rows=rows, device=images.device)
        else:
            numbers = _StreamPerRow(numbers=source)
        return cls(rows=rows, height=height, width=width, device=images.device, numbers=numbers)

    def angles(self) -> Tensor:
        """Return angles uniform in [-pi, pi), [B]."""
        return (self.numbers.uniform() * 2 - 1) * torch.pi

    def chosen(self, chance: float) -> Tensor:
        """Return the images to which an operation of this probability applies, bool [B]; at 1 and above, all."""
        return self.numbers.uniform() < chance


@dataclass(frozen=True, kw_only=True)
class Change:
    """The effect of an operation on a batch.

    Attributes:
        matrix: [B, 3, 3], from coordinates of the result to those of the image; or [B, 4, 4], of colours.
        labels: [B, L].
    """

    matrix: Tensor
    labels: Tensor


Operation = Callable[[Draws, float], Change]
"""Draws a change: first the strength for each image, then whether it applies, with the given probability."""

_Step = TypeVar("_Step")


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """Probabilities of the operations: a common probability times a multiplier of each.

    Attributes:
        probability: At least 0.
        multipliers: By operation; one that is absent or 0 is not part of the pipe.
    """

    probability: float
    multipliers: Mapping[str, float]

    def select(self, table: Iterable[tuple[str, _Step]]) -> list[tuple[float, _Step]]:
        """Return the operations of a table that are part of the pipe, in order, with their probabilities."""
        chances = [(self.multipliers.get(name, 0.0), step) for name, step in table]
        return [(multiplier * self.probability, step) for multiplier, step in chances if multiplier > 0]

    def draw(self, table: Iterable[tuple[str, Operation]], draws: Draws) -> list[Change]:
        """Draw the operations of a table for a batch."""
        return [operation(draws, chance) for chance, operation in self.select(table)]

    def check(self, *, known: Iterable[str]) -> None:
        """Check probability and multipliers.

        Raises:
            ValueError: A number is negative, or an operation is unknown.
        """
        if not self.probability >= 0:
            raise ValueError(f"probability {self.probability}: expected 0 or a positive number")
        names = list(dict.fromkeys(known))
        for name, multiplier in self.multipliers.items():
            if name not in names:
                raise ValueError(f"operation {name!r}: expected one of {', '.join(names)}")
            if not multiplier >= 0:
                raise ValueError(f"multiplier {multiplier} of {name}: expected 0 or a positive number")


def move(images: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return images [B, C, H, W] under all changes of the plane, composed so that the first acts last."""
    if not changes:
        return images
    return warp(images, reduce(torch.matmul, [change.matrix for change in changes]))


def recolour(images: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return images [B, C, H, W] under all changes of colour, in order.

    A grey image, C = 1, becomes the mean of the colours of (grey, grey, grey).

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
    """Return all labels concatenated, float32 [B, L]."""
    return torch.cat([torch.zeros(draws.rows, 0, device=draws.device), *(each.float() for each in labels)], dim=1)
