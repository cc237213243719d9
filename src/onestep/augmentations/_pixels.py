"""Exact moves of pixels, row by row: no value changes, only its place."""

from __future__ import annotations

import torch
from torch import Tensor


def flip(images: Tensor, *, flipped: Tensor, dim: int) -> Tensor:
    """Return images [B, C, H, W], reversed along `dim` where `flipped` [B] is true."""
    return torch.where(flipped[:, None, None, None], images.flip(dim), images)


def quarter_turns(images: Tensor, *, turns: Tensor) -> Tensor:
    """Return square images [B, C, H, H], turned by `turns` [B] quarters, 0 to 3."""
    images = flip(images, flipped=_any_of(turns, 1, 2), dim=3)
    images = flip(images, flipped=_any_of(turns, 2, 3), dim=2)
    return torch.where(_any_of(turns, 1, 3)[:, None, None, None], images.mT, images)


def quarter_turn_labels(turns: Tensor) -> Tensor:
    """Return two bits [B, 2] that tell 0, 1, 2 and 3 quarters [B] apart."""
    return torch.stack([_any_of(turns, 1, 2), _any_of(turns, 2, 3)], dim=1)


def shift(images: Tensor, *, right: Tensor, up: Tensor) -> Tensor:
    """Return images [B, C, H, W], moved by `right` and `up` [B] whole pixels; what comes in is their reflection."""
    rows, channels, height, width = images.shape
    row = torch.arange(rows, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    y = _reflected(height, torch.arange(height, device=images.device) + up[:, None])
    x = _reflected(width, torch.arange(width, device=images.device) - right[:, None])
    return images[row, channel, y[:, None, :, None], x[:, None, None, :]]


def _any_of(values: Tensor, *wanted: int) -> Tensor:
    return torch.isin(values, torch.tensor(wanted, device=values.device))


def _reflected(length: int, places: Tensor) -> Tensor:
    """Return the places in [0, length) that places beyond mirror, the border pixels being the mirrors."""
    last = length - 1
    return last - (last - places % max(2 * last, 1)).abs()
