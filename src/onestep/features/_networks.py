"""Published networks as extractors: weights of a local file, the publishers' resizing, execution in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from onestep.arithmetic import Precision, computing
from onestep.checkpoints.published_weights import read_published_weights

Weights = Mapping[str, Tensor]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Images per call of a network, which bounds its memory. Few on a CPU, so that the C library reuses the memory of a
# layer: above 32 MiB it returns to the system after every use, which takes a quarter of the Inception network's time.
_ROWS, _ROWS_ON_A_CPU = 64, 8


def load_timm_network(
    path: Path, *, name: str, convert: Callable[[Weights, Any], Weights], **options: Any
) -> nn.Module:
    """Build a network of timm with the weights of a file, in evaluation mode; nothing is downloaded.

    The file is safetensors, or of `torch.save` with tensors only; `convert` renames and reshapes its tensors.
    ValueError: the file does not fit the network.
    """
    import timm  # takes a second

    weights = read_published_weights(path)
    with torch.device("meta"):  # no initialisation, because the file replaces all weights
        model = timm.create_model(name, pretrained=False, **options)
    try:
        model.load_state_dict(convert(weights, model), strict=True, assign=True)
    except ValueError as error:
        raise ValueError(f"{path}: not the weights of timm's {name}: {error}") from None
    except (RuntimeError, KeyError) as error:
        lines = "; ".join(line.strip()[:200] for line in str(error).splitlines()[1:4]) or f"lacks {error}"
        raise ValueError(f"{path}: not the weights of timm's {name}: {lines}") from None
    return model.to(torch.float32).eval().requires_grad_(False)


def run_in_parts(
    network: Callable[[Tensor], Tensor], pixels: Tensor, *, prepare: Callable[[Tensor], Tensor], precision: Precision
) -> Tensor:
    """Return the network's output, float32 [B, D], for pixels, uint8 [B, 3 or 1, H, W], on their device.

    `prepare` resizes and normalises RGB pixels, in float32. ValueError: see `as_rgb`.
    """
    parts = []
    for part in as_rgb(pixels).split(_ROWS_ON_A_CPU if pixels.device.type == "cpu" else _ROWS):
        images = prepare(part)
        with computing(precision, device=pixels.device):
            parts.append(network(images).to(torch.float32))
    return torch.cat(parts)


def as_rgb(pixels: Tensor) -> Tensor:
    """Repeat grey pixels, uint8 [B, 1 or 3, H, W], to three channels; ValueError: another type or shape."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        found = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
        raise ValueError(f"pixels: got {found}, expected uint8 [B, 3, H, W], or [B, 1, H, W] for grey images")
    return pixels.expand(-1, 3, -1, -1)


def resized_as_in_tensorflow(pixels: Tensor, *, size: int) -> Tensor:
    """Resize pixels [B, C, H, W] to float32 [B, C, size, size] in [0, 255].

    The bilinear resize of TensorFlow 1 (`resize_bilinear` without options), the first step of the Inception graph of
    2015: pixel i of the result is at i * H / size of the source, so the top left corners coincide; there is no
    smoothing, and the last row and column are repeated.
    """
    return _resized(_resized(pixels.to(torch.float32), size=size, dim=3), size=size, dim=2)


def _resized(images: Tensor, *, size: int, dim: int) -> Tensor:
    length = images.shape[dim]
    positions = torch.arange(size, dtype=torch.float32, device=images.device) * (length / size)
    before = positions.floor().long().clamp(max=length - 1)
    after = (before + 1).clamp(max=length - 1)
    share = (positions - before).reshape((-1,) + (1,) * (3 - dim))
    start = images.index_select(dim, before)
    return start + (images.index_select(dim, after) - start) * share


def covering_square(pixels: Tensor, *, size: int) -> Tensor:
    """Resize the shorter side of uint8 images by Pillow's bicubic filter, and crop the centre [B, C, size, size]."""
    height, width = pixels.shape[-2:]
    shorter = min(height, width)
    resized = resized_by_pillow(pixels, height=size * height // shorter, width=size * width // shorter)
    top, left = (round((length - size) / 2) for length in resized.shape[-2:])
    return resized[..., top : top + size, left : left + size]


def resized_by_pillow(pixels: Tensor, *, height: int, width: int) -> Tensor:
    """Resize uint8 RGB images to [B, 3, height, width] by Pillow's bicubic filter: antialiased, rounded to uint8."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())
    resized = np.empty((len(images), height, width, images.shape[-1]), np.uint8)

    def resize(index: int) -> None:
        picture = Image.fromarray(images[index]).resize((width, height), Image.Resampling.BICUBIC)
        resized[index] = np.asarray(picture)

    # Pillow resizes without the interpreter's lock; as many at once as torch may have threads.
    with ThreadPoolExecutor(min(torch.get_num_threads(), len(images) or 1)) as threads:
        for _ in threads.map(resize, range(len(images))):
            pass
    return torch.from_numpy(resized).permute(0, 3, 1, 2).to(pixels.device)


def normalised(
    values: Tensor, *, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Tensor:
    """Return (values / 255 - mean) / std, float32, for values [B, 3, H, W] in [0, 255]."""
    means, stds = (torch.tensor(numbers, device=values.device).reshape(-1, 1, 1) for numbers in (mean, std))
    return (values.to(torch.float32) / 255 - means) / stds
