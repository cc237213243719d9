"""Images under an affine map, without aliasing (Karras et al., arXiv:2006.06676, appendix B)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.augmentations._wavelet import REACH, double, halve

_RIM = REACH // 2
"""Pixels of the given resolution that the filter reaches beyond the image, to each side."""


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Return images whose pixel at x shows what the given one shows at `inverse` x.

    The border is continued by reflection as far as the batch needs, at most once over, and then by 0. The image is
    sampled at twice its resolution, and filtered on the way up and down. The two filters undo each other (to 4e-6, if
    a side has 7 pixels or more) for shifts by whole pixels. They are not quite symmetric, so that a mirrored image
    loses some of what is finest in it.

    Args:
        images: [B, C, H, W].
        inverse: Affine maps [B, 3, 3] of pixel coordinates (x, y, 1), counted from the image's centre.

    Returns:
        [B, C, H, W].
    """
    rows, channels, height, width = images.shape
    left, top, right, bottom = _margins(inverse, height=height, width=width)
    padded = F.pad(images, (left, right, top, bottom), mode="reflect")
    shown_height, shown_width = height + 2 * _RIM, width + 2 * _RIM
    theta = (
        _to_grid(inverse, height=height + top + bottom, width=width + left + right)
        @ _recentred(inverse, x=(left - right) / 2, y=(top - bottom) / 2)
        @ inverse
        @ torch.linalg.inv(_to_grid(inverse, height=shown_height, width=shown_width))
    )
    size = [rows, channels, 2 * shown_height, 2 * shown_width]
    grid = F.affine_grid(theta[:, :2].to(images.dtype), size, align_corners=False)
    sampled = F.grid_sample(double(padded), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # The rim is one pixel wider on each side than what the filter covers of it.
    return halve(sampled[:, :, 1:-1, 1:-1])


def _margins(inverse: Tensor, *, height: int, width: int) -> list[int]:
    """Return how many pixels to add left, top, right and bottom so that all rows of the batch find what they show."""
    x, y = (width - 1) / 2, (height - 1) / 2
    corners = inverse.new_tensor([[-x, x, x, -x], [-y, -y, y, y], [1, 1, 1, 1]])
    seen = (inverse @ corners)[:, :2].movedim(0, 1).flatten(1)
    furthest = torch.cat([-seen, seen]).amax(dim=1)
    wanted = furthest + inverse.new_tensor([2 * _RIM - x, 2 * _RIM - y] * 2)
    # Reflection cannot go further than an image's other side.
    most = inverse.new_tensor([width - 1, height - 1] * 2)
    return wanted.clamp_min(0).minimum(most).ceil().int().tolist()


def _recentred(like: Tensor, *, x: float, y: float) -> Tensor:
    """Return the map [3, 3] to coordinates whose centre lies at (-x, -y)."""
    return like.new_tensor([[1, 0, x], [0, 1, y], [0, 0, 1]])


def _to_grid(like: Tensor, *, height: int, width: int) -> Tensor:
    """Return the map [3, 3] from pixels of an image, from its centre, to [-1, 1] over the image doubled by `double`."""
    return like.new_tensor([[2 / width, 0, -0.5 / width], [0, 2 / height, -0.5 / height], [0, 0, 1]])
