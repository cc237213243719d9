"""Images from outside the pipeline: a folder or an archive of pictures, an array, a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onestep.checkpoints.published_weights import read_published_tensor
from onestep.data._pixels import decode
from onestep.data._sources import EXTENSIONS, Entry, Source, open_source
from onestep.evaluation.extraction import read_pixels


def iter_images(path: Path) -> Iterator[Tensor]:
    """Yield images, uint8 [B, C, H, W]; pictures one at a time in the order of their names.

    Args:
        path: A folder, a zip (such as EDM's datasets) or a tar of pictures of one size; an .npz with `arr_0` or
            `pixels`, uint8 [N, H, W, C]; or a .pt with a tensor, uint8 [N, C, H, W]. C is 1 (grey) or 3 (RGB).

    Raises:
        ValueError: There are no images, or one of them is not as described; the message contains its name.
    """
    if path.suffix == ".npz":
        yield _checked(torch.from_numpy(read_pixels(path)), path=path)
    elif path.suffix in (".pt", ".pth"):
        yield _checked(read_published_tensor(path), path=path)
    else:
        yield from _pictures(path)


def _checked(pixels: Tensor, *, path: Path) -> Tensor:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not len(pixels):
        found = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
        raise ValueError(f"{path}: got {found}, expected at least one image, uint8 [N, C, H, W] with C = 1 or 3")
    return pixels


def _pictures(path: Path) -> Iterator[Tensor]:
    """Yield the pictures of a folder or archive, uint8 [1, C, H, W]."""
    source = open_source(path)
    entries = sorted(source.entries(), key=lambda entry: entry.name)
    if not entries:
        raise ValueError(f"{path}: got no pictures, expected files that end in {', '.join(sorted(EXTENSIONS))}")
    size = None
    for entry in entries:
        pixels = _decoded(source, entry, path=path)
        size = size or pixels.shape[:2]
        if pixels.shape[:2] != size:
            raise ValueError(
                f"{path}: {entry.name}: got {_size(pixels.shape[:2])} pixels, expected {_size(size)} as in "
                f"{entries[0].name}. Fix: resize the pictures first, because the method changes every metric"
            )
        yield torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None]


def _decoded(source: Source, entry: Entry, *, path: Path) -> np.ndarray:
    try:
        if entry.refused is not None:
            raise ValueError(entry.refused)
        return decode(source.read(entry))
    except ValueError as error:
        raise ValueError(f"{path}: {entry.name}: {error}") from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
