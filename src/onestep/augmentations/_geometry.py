"""Geometry and colour of images: transformation matrices, exact moves of pixels, anti-aliased affine warps.

Matrices are [B, n, n]: of the plane in homogeneous pixel coordinates (x right, y down), or of colours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# fmt: off
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)
# fmt: on
"""The symlet of six vanishing moments (Daubechies, Ten Lectures on Wavelets, 1992, section 8.1.1): its low-pass filter,
for decomposition, of unit energy and sum sqrt(2). The values follow from that definition, which the tests check."""

REACH = len(SYM6) // 2  # extent of the filter on each side, in upsampled pixels
_RIM = REACH // 2  # the same beyond the image, in pixels of its resolution


def plane_scaling(x: Tensor, y: Tensor) -> Tensor:
    """Return the scaling of the coordinates by x and y, each [B]."""
    return _square(x, 0, 0, 0, y, 0, 0, 0, 1)


def plane_rotation(angle: Tensor) -> Tensor:
    """Return the rotation from x towards y by an angle [B] in radians."""
    cos, sin = angle.cos(), angle.sin()
    return _square(cos, -sin, 0, sin, cos, 0, 0, 0, 1)


def plane_shift(x: Tensor, y: Tensor) -> Tensor:
    """Return the translation by x and y, each [B]."""
    return _square(1, 0, x, 0, 1, y, 0, 0, 1)


def plane_stretch(factor: Tensor) -> Tensor:
    """Return the scaling of x by a factor [B] and of y by its inverse."""
    return plane_scaling(factor, 1 / factor)


def colour_shift(amount: Tensor) -> Tensor:
    """Return the addition of an amount [B] to red, green and blue: brightness."""
    return _square(1, 0, 0, amount, 0, 1, 0, amount, 0, 0, 1, amount, 0, 0, 0, 1)


def colour_scaling(factor: Tensor) -> Tensor:
    """Return the scaling of red, green and blue by a factor [B]: contrast about mid-grey, which is 0."""
    return _square(factor, 0, 0, 0, 0, factor, 0, 0, 0, 0, factor, 0, 0, 0, 0, 1)


def luma_flip(flipped: Tensor) -> Tensor:
    """Return the reflection of the grey component of a colour where `flipped` [B] is 1, else the identity."""
    return _split(grey=1 - 2 * flipped, colourful=torch.ones_like(flipped))


def saturation(factor: Tensor) -> Tensor:
    """Return the scaling of the component orthogonal to grey by a factor [B]."""
    return _split(grey=torch.ones_like(factor), colourful=factor)


def hue(angle: Tensor) -> Tensor:
    """Return the rotation of colours about the grey axis by an angle [B] in radians (Rodrigues' formula)."""
    same = (1 + 2 * angle.cos()) / 3
    swing = angle.sin() / math.sqrt(3)
    ahead, behind = (1 - angle.cos()) / 3 - swing, (1 - angle.cos()) / 3 + swing
    return _square(same, ahead, behind, 0, behind, same, ahead, 0, ahead, behind, same, 0, 0, 0, 0, 1)


def _split(*, grey: Tensor, colourful: Tensor) -> Tensor:
    """Return the scaling of the component along (1, 1, 1) by one factor and of the orthogonal part by another."""
    off = (grey - colourful) / 3
    on = off + colourful
    return _square(on, off, off, 0, off, on, off, 0, off, off, on, 0, 0, 0, 0, 1)


def _square(*entries: Tensor | float) -> Tensor:
    """Return the matrix [B, n, n] of n * n entries in row order, each a number or [B]; at least one is a tensor."""
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    filled = [entry if isinstance(entry, Tensor) else torch.full_like(like, entry) for entry in entries]
    side = math.isqrt(len(filled))
    return torch.stack(filled, dim=-1).unflatten(-1, (side, side))


def flip(images: Tensor, *, flipped: Tensor, dim: int) -> Tensor:
    """Return images [B, C, H, W], reversed along `dim` where `flipped` [B] is true."""
    return torch.where(flipped[:, None, None, None], images.flip(dim), images)


def quarter_turns(images: Tensor, *, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Return square images [B, C, H, H], rotated by `turns` [B] quarters, 0 to 3, and two bits [B, 2] for them."""
    across, down = (turns == 1) | (turns == 2), (turns == 2) | (turns == 3)
    turned = flip(flip(images, flipped=across, dim=3), flipped=down, dim=2)
    turned = torch.where((across ^ down)[:, None, None, None], turned.mT, turned)
    return turned, torch.stack([across, down], dim=1)


def shift(images: Tensor, *, right: Tensor, up: Tensor) -> Tensor:
    """Return images [B, C, H, W], shifted by `right` and `up` [B] whole pixels; the border is reflected."""
    height, width = images.shape[2:]
    y = _reflected(height, torch.arange(height, device=images.device) + up[:, None])
    x = _reflected(width, torch.arange(width, device=images.device) - right[:, None])
    return pixels_at(images, y=y, x=x)


def pixels_at(images: Tensor, *, y: Tensor, x: Tensor) -> Tensor:
    """Return images [B, C, H', W'] of the pixels in rows `y` [B, H'] and columns `x` [B, W']."""
    row = torch.arange(images.shape[0], device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[row, channel, y[:, None, :, None], x[:, None, None, :]]


def _reflected(length: int, places: Tensor) -> Tensor:
    """Return indices in [0, length): those outside are reflected at the border pixels."""
    last = length - 1
    return last - (last - places % max(2 * last, 1)).abs()


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Return images [B, C, H, W] whose pixel at x is that of the given one at `inverse` x, without aliasing.

    `inverse` are affine maps [B, 3, 3] of pixel coordinates (x, y, 1), counted from the image's centre.

    Karras et al., arXiv:2006.06676, appendix B. The border is padded by reflection as far as the batch requires, at
    most once, and then by 0. The image is sampled at twice its resolution and filtered on the way up and down. The two
    filters cancel (to 4e-6, for sides of 7 pixels or more) for shifts by whole pixels. They are not symmetric, so a
    mirrored image loses some of its finest detail.
    """
    rows, channels, height, width = images.shape
    left, top, right, bottom = _margins(inverse, height=height, width=width)
    padded = F.pad(images, (left, right, top, bottom), mode="reflect")
    shown_height, shown_width = height + 2 * _RIM, width + 2 * _RIM
    theta = (
        _to_grid(inverse, height=height + top + bottom, width=width + left + right)
        @ inverse.new_tensor([[1, 0, (left - right) / 2], [0, 1, (top - bottom) / 2], [0, 0, 1]])
        @ inverse
        @ torch.linalg.inv(_to_grid(inverse, height=shown_height, width=shown_width))
    )
    size = [rows, channels, 2 * shown_height, 2 * shown_width]
    grid = F.affine_grid(theta[:, :2].to(images.dtype), size, align_corners=False)
    sampled = F.grid_sample(double(padded), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # The rim is one pixel wider on each side than the filter's extent.
    return halve(sampled[:, :, 1:-1, 1:-1])


def _margins(inverse: Tensor, *, height: int, width: int) -> list[int]:
    """Return the padding left, top, right and bottom, in pixels, that covers all warped images of the batch."""
    x, y = (width - 1) / 2, (height - 1) / 2
    corners = inverse.new_tensor([[-x, x, x, -x], [-y, -y, y, y], [1, 1, 1, 1]])
    corners_at = (inverse @ corners)[:, :2].movedim(0, 1).flatten(1)
    furthest = torch.cat([-corners_at, corners_at]).amax(dim=1)
    required = furthest + inverse.new_tensor([2 * _RIM - x, 2 * _RIM - y] * 2)
    # Reflection is limited by the size of the image.
    most = inverse.new_tensor([width - 1, height - 1] * 2)
    return required.clamp_min(0).minimum(most).ceil().int().tolist()


def _to_grid(like: Tensor, *, height: int, width: int) -> Tensor:
    """Return the map [3, 3] from centred pixel coordinates to [-1, 1] over the image upsampled by `double`."""
    return like.new_tensor([[2 / width, 0, -0.5 / width], [0, 2 / height, -0.5 / height], [0, 0, 1]])


def double(images: Tensor) -> Tensor:
    """Upsample images [B, C, H, W] to [B, C, 2H, 2W] by the filter; the border is padded by 0.

    Pixel i moves to 2i: to 2x - 1/2 in coordinates from the centre.
    """
    rows, channels, height, width = images.shape
    spread = images.new_zeros(rows, channels, 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = images
    # Every second pixel is empty in each direction, hence the factor 2.
    return _filtered(F.pad(spread, (REACH, REACH - 1) * 2), 2 * _taps(images).flip(0), stride=1)


def halve(images: Tensor) -> Tensor:
    """Downsample images by the filter without padding: [B, C, H', W'], H' = (H - 12) // 2 + 1."""
    return _filtered(images, _taps(images), stride=2)


def _taps(like: Tensor) -> Tensor:
    """Return the filter, normalized to sum 1."""
    taps = like.new_tensor(SYM6)
    return taps / taps.sum()


def _filtered(images: Tensor, taps: Tensor, *, stride: int) -> Tensor:
    """Return the correlation of each channel with the taps, along rows and then along columns."""
    channels = images.shape[1]
    kernel = taps.expand(channels, 1, 1, -1)
    across = F.conv2d(images, kernel, stride=(1, stride), groups=channels)
    return F.conv2d(across, kernel.mT, stride=(stride, 1), groups=channels)
