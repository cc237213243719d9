"""Decoded pixels for training: in memory if they are few, else in one memory-mapped file shared by all processes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from onestep.archive import digest_of
from onestep.data.image_zip import ImageZip
from onestep.files import replacing

_logger = logging.getLogger(__name__)

# Each process has its own copy in memory: CIFAR-10 takes 0.15 GB, FFHQ at 64x64 0.86, ImageNet at 64x64 15.7.
_IN_MEMORY = 2**30


class OneHot:
    """One-hot classes, made per batch: those of all of ImageNet would take 5 GB a process."""

    def __init__(self, labels: np.ndarray, *, classes: int) -> None:  # int64 [N], in 0..classes - 1
        self._labels, self._classes = torch.from_numpy(labels), classes

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the rows float32 [B, K] of the images `indices`, int64 [B]."""
        return functional.one_hot(self._labels[indices], self._classes).float()


def decoded(archive: ImageZip, *, cache: Path | None, in_memory: int = _IN_MEMORY) -> Tensor:
    """Return all pixels of an archive, uint8 [N, C, H, W]; the caller must not write to them.

    Args:
        archive: The images.
        cache: Folder for the files of pixels that are too large for memory, best on a local disk; the first process
            decodes into it, the others wait and share. None keeps everything in memory.
        in_memory: Size in bytes up to which pixels are kept in memory.

    Raises:
        ValueError: An image cannot be read.
    """
    shape = (len(archive), archive.channels, archive.resolution, archive.resolution)
    if cache is None or int(np.prod(shape, dtype=np.int64)) <= in_memory:
        return torch.from_numpy(archive.read_all()[0])
    path = cache / f"{archive.source.stem}-{digest_of(archive.source)[:16]}.npy"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not _is_whole(path, shape):
            _logger.info("decoding %s images into %s", f"{shape[0]:,}", path)
            with replacing(path) as temporary:
                pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                for index in range(shape[0]):
                    pixels[index] = archive[index][0].numpy()
                pixels.flush()
    # Private pages: torch warns about read-only arrays, and writes by mistake do not reach the file.
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file holds an array of this shape to its last byte; its name holds the digest of the archive."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.uint8
