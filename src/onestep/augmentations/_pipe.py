"""A pipe of random operations: their random numbers, probabilities and strengths, and their application."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from onestep.augmentations import Augmented, RowNumbers, Source, _geometry

# Strengths of both pipes (Karras et al., arXiv:2006.06676, appendix B; arXiv:2206.00364, F.2).
SHIFT = 0.125  # largest shift by whole pixels and deviation of fractional shifts, as shares of the image size
SCALE = 0.2  # deviation of log2 of the scale factor
STRETCH = 0.2  # deviation of log2 of the anisotropic scale factor, which preserves the area
BRIGHTNESS = 0.2  # deviation of the amount added to all colours
CONTRAST = 0.5  # deviation of log2 of the factor on all colours
SATURATION = 1.0  # deviation of log2 of the factor on the component orthogonal to grey


class Draws:
    """Random numbers for B images [B, C, height, width]; their order in a stream is the reference's."""

    def __init__(self, images: Tensor, *, source: Source) -> None:
        self.rows, _, self.height, self.width = images.shape
        self.device = images.device
        self._stream = source if isinstance(source, torch.Generator) else None
        self._by_row: RowNumbers | None = None if isinstance(source, torch.Generator) else source

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), float32 [B, *shape]."""
        if self._by_row is not None:
            return self._by_row.uniform(*shape)
        return self._drawn(torch.rand, self.rows, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, float32 [B, *shape]."""
        if self._by_row is not None:
            return self._by_row.normal(*shape)
        return self._drawn(torch.randn, self.rows, *shape)

    def uniform_pair(self) -> Tensor:
        """Return uniform numbers, float32 [2, B]; one stream gives first all of row 0, then all of row 1."""
        return self._drawn(torch.rand, 2, self.rows) if self._by_row is None else self._by_row.uniform(2).T

    def normal_pair(self) -> Tensor:
        """Return standard normal numbers, float32 [2, B], likewise."""
        return self._drawn(torch.randn, 2, self.rows) if self._by_row is None else self._by_row.normal(2).T

    def integers(self, *, low: int, high: int) -> Tensor:
        """Return integers in [low, high), int64 [B]."""
        if self._by_row is not None:
            return (self._by_row.uniform() * (high - low)).long() + low
        return self._drawn(lambda *shape, **where: torch.randint(low, high, shape, **where), self.rows)

    def sometimes(self, chance: float, drawn: Tensor, *, still: float = 0) -> Tensor:
        """Return drawn numbers [..., B] with a probability, at 1 and above always, else `still`."""
        return torch.where(self.uniform() < chance, drawn, torch.full_like(drawn, still))

    def _drawn(self, draw: Callable[..., Tensor], *shape: int) -> Tensor:
        """Draw from the one stream, on its own device."""
        origin = self.device if self._stream is None else self._stream.device
        return draw(*shape, generator=self._stream, device=origin).to(self.device)


@dataclass(frozen=True, kw_only=True)
class Change:
    """The effect of an operation on a batch."""

    matrix: Tensor  # [B, 3, 3], from coordinates of the result to those of the image; or [B, 4, 4], of colours
    labels: Tensor  # [B, L]


Operation = Callable[[Draws, float], Change]
"""Draws a change: first the strength for each image, then whether it applies, with the given probability."""

Table = Iterable[tuple[str, Operation]]
"""Operations by name, in order; a name may return."""


def rotate(draws: Draws, chance: float) -> Change:
    """Rotate the plane."""
    return _turn(draws, chance, matrix=_geometry.plane_rotation)


def hue(draws: Draws, chance: float) -> Change:
    """Rotate colours about the grey axis."""
    return _turn(draws, chance, matrix=_geometry.hue)


def _turn(draws: Draws, chance: float, *, matrix: Callable[[Tensor], Tensor]) -> Change:
    """Turn by an angle uniform in [-pi, pi), 0 for unchanged images."""
    angle = draws.sometimes(chance, (draws.uniform() * 2 - 1) * torch.pi)
    return Change(matrix=matrix(angle), labels=torch.stack([angle.cos() - 1, angle.sin()], dim=1))


def check(probability: float, multipliers: Mapping[str, float], *, known: Iterable[str]) -> None:
    """Raise ValueError if a number is negative, or an operation is unknown."""
    if not probability >= 0:
        raise ValueError(f"probability {probability}: expected 0 or a positive number")
    names = list(dict.fromkeys(known))
    for name, multiplier in multipliers.items():
        if name not in names:
            raise ValueError(f"operation {name!r}: expected one of {', '.join(names)}")
        if not multiplier >= 0:
            raise ValueError(f"multiplier {multiplier} of {name}: expected 0 or a positive number")


def chances(probability: float, multipliers: Mapping[str, float]) -> dict[str, float]:
    """Return the probability of each operation with a positive multiplier."""
    return {name: multiplier * probability for name, multiplier in multipliers.items() if multiplier > 0}


def augment(
    images: Tensor,
    draws: Draws,
    likely: Mapping[str, float],
    *,
    moves: Table,
    tints: Table,
    labels: Iterable[Tensor] = (),
) -> Augmented:
    """Return images [B, C, H, W] after the operations of two tables, with these `chances`, drawn in order.

    The moves are composed so that the first acts last. Their labels, and those of the tints, follow the given ones.
    ValueError: colours change and C is neither 3 nor 1.
    """
    moved, tinted = (
        [operation(draws, likely[name]) for name, operation in table if name in likely] for table in (moves, tints)
    )
    if moved:
        images = _geometry.warp(images, reduce(torch.matmul, [change.matrix for change in moved]))
    if tinted:
        images = _recoloured(images, reduce(torch.matmul, [change.matrix for change in reversed(tinted)]))
    every = [*labels, *(change.labels for change in (*moved, *tinted))]
    none = torch.zeros(draws.rows, 0, device=draws.device)
    return Augmented(images=images, labels=torch.cat([none, *(each.float() for each in every)], dim=1))


def _recoloured(images: Tensor, matrix: Tensor) -> Tensor:
    """Grey images, C = 1, become the mean of the colours of (grey, grey, grey)."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images of {images.shape[1]} channels: changes of colour expect 3 (RGB) or 1 (grey)")
    matrix = matrix[:, :3].to(images.dtype)
    if images.shape[1] == 1:
        grey = matrix.mean(dim=1, keepdim=True)
        return images * grey[:, :, :3].sum(dim=2)[..., None, None] + grey[:, :, 3, None, None]
    return torch.einsum("brc,bchw->brhw", matrix[:, :, :3], images) + matrix[:, :, 3, None, None]
