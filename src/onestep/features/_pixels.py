"""What published networks see of an image: resized and normalised, each as its publisher did."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Rows of one call of a network, which bound its memory. On a CPU few, so that the C library can keep what a layer
# allocates: above 32 MiB it goes back to the system after every use, a quarter of the Inception network's time.
_ROWS, _ROWS_ON_A_CPU = 64, 8

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def as_rgb(pixels: Tensor) -> Tensor:
    """Return pixels, uint8 [B, 1 or 3, H, W], with three channels; grey is repeated.

    Raises:
        ValueError: They are not uint8, or have another shape.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        found = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
        raise ValueError(f"pixels: expected uint8 [B, 3, H, W], or [B, 1, H, W] where they are grey, found {found}")
    return pixels.expand(-1, 3, -1, -1)


def rgb_parts(pixels: Tensor) -> tuple[Tensor, ...]:
    """Return pixels as `as_rgb` does, in parts of as many as one call of a network takes."""
    return as_rgb(pixels).split(_ROWS_ON_A_CPU if pixels.device.type == "cpu" else _ROWS)


def resized_as_in_tensorflow(pixels: Tensor, *, size: int) -> Tensor:
    """Return pixels [B, C, H, W] as float32 [B, C, size, size] on their scale, 0 to 255.

    The bilinear resize of TensorFlow 1 (`resize_bilinear` without options), which the Inception graph of 2015 begins
    with: pixel i of the result lies at i * H / size of the source, so the corners at the top and left coincide; nothing
    is smoothed before, and the last row and column are continued.
    """
    return _stretched(_stretched(pixels.to(torch.float32), size=size, dim=3), size=size, dim=2)


def _stretched(images: Tensor, *, size: int, dim: int) -> Tensor:
    length = images.shape[dim]
    positions = torch.arange(size, dtype=torch.float32, device=images.device) * (length / size)
    before = positions.floor().long().clamp(max=length - 1)
    after = (before + 1).clamp(max=length - 1)
    share = (positions - before).reshape((-1,) + (1,) * (3 - dim))
    start = images.index_select(dim, before)
    return start + (images.index_select(dim, after) - start) * share


def covering_square(pixels: Tensor, *, size: int) -> Tensor:
    """Return the middle of uint8 images, [B, C, size, size], after Pillow's bicubic resize of the shorter side."""
    height, width = pixels.shape[-2:]
    shorter = min(height, width)
    resized = resized_by_pillow(pixels, height=size * height // shorter, width=size * width // shorter)
    top, left = (round((length - size) / 2) for length in resized.shape[-2:])
    return resized[..., top : top + size, left : left + size]


def resized_by_pillow(pixels: Tensor, *, height: int, width: int) -> Tensor:
    """Return uint8 RGB images [B, 3, height, width]; bicubic, antialiased, rounded to uint8, as Pillow does."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BICUBIC))
        for image in images
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(pixels.device)


def normalised(values: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (values / 255 - mean) / std, float32, of values [B, 3, H, W] from 0 to 255."""
    means, stds = (torch.tensor(numbers, device=values.device).reshape(-1, 1, 1) for numbers in (mean, std))
    return (values.to(torch.float32) / 255 - means) / stds
