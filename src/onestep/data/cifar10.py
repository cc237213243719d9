"""CIFAR-10 from its own archive, cifar-10-python.tar.gz: lossless pixels, in the order of its files."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep.checkpoints.cifar_batch import CLASSES, SIDE, CifarBatch, read_cifar_batch

__all__ = ["Cifar10"]

_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_LARGEST_MEMBER = 2**26  # a batch takes 31 MB
_WAY_OUT = "download cifar-10-python.tar.gz again"


class Cifar10:
    """The 50,000 training images, RGB, 32x32, ten classes of 5,000.

    The test batch is left out, as in EDM's dataset archive. Nothing is unpacked to disk, and nothing in the pickled
    batches is executed.

    Attributes:
        resolution: 32.
        channels: 3.
        classes: 10.
        class_names: In the order of the labels.
        unreadable_share: 0: all images are needed.
    """

    resolution = SIDE
    channels = 3
    classes = CLASSES
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    unreadable_share = 0.0

    def __init__(self, *, source: Path | str) -> None:
        """Read all images.

        Args:
            source: `cifar-10-python.tar.gz` as published, or the tar in it.

        Raises:
            ValueError: The file is broken, or lacks one of the five training batches.
        """
        self._source = Path(source)
        self._read = _read(self._source)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._read.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the pixels of one image, uint8 [3, 32, 32], and its class."""
        return torch.from_numpy(self._read.pixels[index]), int(self._read.labels[index])

    def __getstate__(self) -> dict[str, Any]:
        """Send the path alone to another process: reading the file there is quicker than sending the pixels."""
        return {"_source": self._source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the images again."""
        self._source = state["_source"]
        self._read = _read(self._source)


def _read(source: Path) -> CifarBatch:
    """Return the images of the five batches, one after the other."""
    try:
        contents = _contents(source)
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{source}: cannot be read as a tar archive ({error}); {_WAY_OUT}") from error
    missing = [name for name in _BATCHES if name not in contents]
    if missing:
        raise ValueError(f"{source}: holds no {', '.join(missing)}, so it is not CIFAR-10's Python archive; {_WAY_OUT}")
    batches = [_batch(contents[name], found_in=f"{source}: {name}") for name in _BATCHES]
    counts = [len(batch.labels) for batch in batches]
    if len(set(counts)) > 1:
        raise ValueError(f"{source}: its batches have {counts} images, expected equally many in each; {_WAY_OUT}")
    return CifarBatch(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


def _batch(content: bytes, *, found_in: str) -> CifarBatch:
    try:
        return read_cifar_batch(content)
    except ValueError as error:
        raise ValueError(f"{found_in}: {error}; {_WAY_OUT}") from None


def _contents(source: Path) -> dict[str, bytes]:
    """Return the training batches by name; the archive is read as a stream."""
    found: dict[str, bytes] = {}
    with tarfile.open(source, "r|*") as archive:
        for member in archive:
            # Before the stream moves on: skipping a member unpacks it.
            if member.size > _LARGEST_MEMBER:
                raise tarfile.TarError(f"{member.name[:80]} has {member.size:,} bytes, no member of CIFAR-10 has")
            content = archive.extractfile(member)
            name = PurePosixPath(member.name).name
            if name in _BATCHES and member.isreg() and content:
                if name in found:
                    raise tarfile.TarError(f"{name} is there twice")
                found[name] = content.read()
    return found
