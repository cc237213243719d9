"""A dataset from outside the package: stripes, one image per line of a text file with a class and a phase."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Stripes"]


class Stripes:
    """Grey sinusoidal stripes: class 0 is horizontal, class 1 vertical.

    Args:
        source: The text file.
        resolution: H and W.
    """

    def __init__(self, *, source: Path, resolution: int = 16) -> None:
        self.resolution, self.channels, self.classes = resolution, 1, 2
        self.class_names, self.unreadable_share = ("horizontal", "vertical"), 0.0
        rows = [line.split() for line in Path(source).read_text().splitlines()]
        self._rows = [(int(label), float(phase)) for label, phase in rows]

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the pixels of one image, uint8 [1, H, W], and its class."""
        label, phase = self._rows[index]
        wave = (torch.arange(self.resolution) * (2 * torch.pi / 8) + phase).sin()
        image = wave[:, None].expand(-1, self.resolution) if label == 0 else wave.expand(self.resolution, -1)
        return ((image + 1) * 127).to(torch.uint8)[None], label
