"""The random numbers of one augmented batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onestep.augmentations import RowNumbers, Source


class _Numbers(Protocol):
    """Random numbers for B rows; in what order a stream gives them out is the reference's choice, call by call."""

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), float32 [B, *shape]."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, float32 [B, *shape]."""
        ...

    def uniform_pair(self) -> Tensor:
        """Return uniform numbers in [0, 1), float32 [2, B]; one stream for the batch gives those of all rows twice."""
        ...

    def normal_pair(self) -> Tensor:
        """Return standard normal numbers, float32 [2, B], likewise."""
        ...

    def integers(self, *, low: int, high: int) -> Tensor:
        """Return integers in [low, high), int64 [B]."""
        ...


@dataclass(frozen=True, kw_only=True)
class _OneStream:
    """Numbers from one generator for all rows; None is the global generator of `device`."""

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
    """Numbers from one stream a row."""

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
        numbers: The numbers, in the order in which they are asked for.
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
            numbers = _OneStream(generator=source, rows=rows, device=images.device)
        else:
            numbers = _StreamPerRow(numbers=source)
        return cls(rows=rows, height=height, width=width, device=images.device, numbers=numbers)

    def angles(self) -> Tensor:
        """Return an angle a row, uniform in [-pi, pi)."""
        return (self.numbers.uniform() * 2 - 1) * torch.pi

    def chosen(self, chance: float) -> Tensor:
        """Return which rows an operation of this chance befalls, bool [B]; at 1 and above, all."""
        return self.numbers.uniform() < chance
