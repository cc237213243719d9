"""The random numbers of one augmented batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Numbers from one stream, drawn in the order in which they are asked for, for images of one size.

    Attributes:
        rows: Number of images.
        height: Of an image, in pixels.
        width: Of an image, in pixels.
        device: Where the numbers are wanted.
        generator: Where they come from; None is the global generator of `device`.
    """

    rows: int
    height: int
    width: int
    device: torch.device
    generator: torch.Generator | None

    @classmethod
    def of(cls, images: Tensor, *, generator: torch.Generator | None) -> Draws:
        """Return the random numbers for images [B, C, H, W]."""
        rows, _, height, width = images.shape
        return cls(rows=rows, height=height, width=width, device=images.device, generator=generator)

    @property
    def source(self) -> torch.device:
        """Where the numbers are drawn: on the generator's device."""
        return self.device if self.generator is None else self.generator.device

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), float32."""
        return torch.rand(shape, generator=self.generator, device=self.source).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, float32."""
        return torch.randn(shape, generator=self.generator, device=self.source).to(self.device)

    def integers(self, *shape: int, low: int = 0, high: int) -> Tensor:
        """Return integers in [low, high), int64."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.source).to(self.device)

    def angles(self) -> Tensor:
        """Return an angle a row, uniform in [-pi, pi)."""
        return (self.uniform(self.rows) * 2 - 1) * torch.pi

    def chosen(self, chance: float) -> Tensor:
        """Return which rows an operation of this chance befalls, bool [B]; at 1 and above, all."""
        return self.uniform(self.rows) < chance
