"""Matrices of B rows, [B, n, n]: of the plane in homogeneous pixel coordinates (x right, y down), and of colours."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plane_scaling(x: Tensor, y: Tensor) -> Tensor:
    """Return what multiplies the coordinates by x and y, each [B]."""
    return _square(x, 0, 0, 0, y, 0, 0, 0, 1)


def plane_rotation(angle: Tensor) -> Tensor:
    """Return what turns x towards y by an angle [B] in radians."""
    cos, sin = angle.cos(), angle.sin()
    return _square(cos, -sin, 0, sin, cos, 0, 0, 0, 1)


def plane_shift(x: Tensor, y: Tensor) -> Tensor:
    """Return what adds x and y, each [B]."""
    return _square(1, 0, x, 0, 1, y, 0, 0, 1)


def plane_stretch(factor: Tensor) -> Tensor:
    """Return what multiplies x by a factor [B] and divides y by it."""
    return plane_scaling(factor, 1 / factor)


def colour_shift(amount: Tensor) -> Tensor:
    """Return what adds an amount [B] to red, green and blue: brightness."""
    return _square(1, 0, 0, amount, 0, 1, 0, amount, 0, 0, 1, amount, 0, 0, 0, 1)


def colour_scaling(factor: Tensor) -> Tensor:
    """Return what multiplies red, green and blue by a factor [B]: contrast about mid-grey, which is 0."""
    return _square(factor, 0, 0, 0, 0, factor, 0, 0, 0, 0, factor, 0, 0, 0, 0, 1)


def luma_flip(flipped: Tensor) -> Tensor:
    """Return what mirrors the grey part of a colour and keeps the rest, where `flipped` [B] is 1 and not 0."""
    return _split(grey=1 - 2 * flipped, colourful=torch.ones_like(flipped))


def saturation(factor: Tensor) -> Tensor:
    """Return what keeps the grey part of a colour and multiplies the rest by a factor [B]."""
    return _split(grey=torch.ones_like(factor), colourful=factor)


def hue(angle: Tensor) -> Tensor:
    """Return what turns colours about the grey axis by an angle [B] in radians (Rodrigues' formula)."""
    same = (1 + 2 * angle.cos()) / 3
    swing = angle.sin() / math.sqrt(3)
    ahead, behind = (1 - angle.cos()) / 3 - swing, (1 - angle.cos()) / 3 + swing
    return _square(same, ahead, behind, 0, behind, same, ahead, 0, ahead, behind, same, 0, 0, 0, 0, 1)


def _split(*, grey: Tensor, colourful: Tensor) -> Tensor:
    """Return what multiplies a colour's part along (1, 1, 1) by one factor, and what is across by another."""
    off = (grey - colourful) / 3
    on = off + colourful
    return _square(on, off, off, 0, off, on, off, 0, off, off, on, 0, 0, 0, 0, 1)


def _square(*entries: Tensor | float) -> Tensor:
    """Return [B, n, n] of n * n entries, row by row, each a number or [B]; at least one is a tensor."""
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    filled = [entry if isinstance(entry, Tensor) else torch.full_like(like, entry) for entry in entries]
    side = math.isqrt(len(filled))
    return torch.stack(filled, dim=-1).unflatten(-1, (side, side))
