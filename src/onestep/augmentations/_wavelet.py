"""Twice and half the resolution through the low-pass filter of the sym6 wavelet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""The symlet of six vanishing moments (Daubechies, Ten Lectures on Wavelets, 1992, section 8.1.1): its low-pass filter,
for decomposition, of unit energy and sum sqrt(2). The values follow from that definition, which the tests check."""

REACH = len(SYM6) // 2
"""How many doubled pixels the filter reaches to each side."""


def double(images: Tensor) -> Tensor:
    """Return images [B, C, 2H, 2W] of [B, C, H, W]; beyond the border there is 0.

    Pixel i comes to lie at 2i: at 2x - 1/2 where x and 2x are counted from the centre.
    """
    rows, channels, height, width = images.shape
    spread = images.new_zeros(rows, channels, 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = images
    # A pixel in two is empty in each direction, hence the factors 2.
    taps = 2 * _taps(images).flip(0)
    padded = F.pad(spread, (REACH, REACH - 1) * 2)
    return _filtered(padded, taps, stride=1)


def halve(images: Tensor) -> Tensor:
    """Return every second filtered pixel, of those the filter covers wholly: [B, C, H', W'], H' = (H - 12) // 2 + 1."""
    return _filtered(images, _taps(images), stride=2)


def _taps(like: Tensor) -> Tensor:
    """Return the filter with sum 1."""
    taps = like.new_tensor(SYM6)
    return taps / taps.sum()


def _filtered(images: Tensor, taps: Tensor, *, stride: int) -> Tensor:
    """Return the correlation of each channel with the taps, along rows and then along columns."""
    channels = images.shape[1]
    kernel = taps.expand(channels, 1, 1, -1)
    across = F.conv2d(images, kernel, stride=(1, stride), groups=channels)
    return F.conv2d(across, kernel.mT, stride=(stride, 1), groups=channels)
