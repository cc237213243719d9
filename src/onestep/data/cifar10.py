"""CIFAR-10 from its own archive, cifar-10-python.tar.gz: lossless pixels, in the order of its files.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). Each of `data_batch_1` to
`data_batch_5` is a pickle of Python 2, a dict with `data`, a numpy array uint8 [10000, 3072] (red, green, blue; row by
row), and `labels`, a list of 10,000 classes. Copies that Python 3 wrote (protocols 2 to 4) are read too. Nothing is
unpacked to disk, and nothing in the pickles is executed.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from onestep.checkpoints.safe_pickle import Budget, kind, naming, read_pickle
from onestep.checkpoints.saved_modules import StoredArray, allowed_globals
from onestep.data._sources import unpacked
from onestep.files import regular_file

__all__ = ["Cifar10"]

_SIDE = 32
_NUMBERS = 3 * _SIDE**2
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_LARGEST_MEMBER = 2**26  # a batch takes 31 MB
_MOST_MEMBERS = 100  # CIFAR-10 has 9
_WAY_OUT = "download cifar-10-python.tar.gz again"


class Cifar10:
    """The 50,000 training images, RGB, 32x32, ten classes of 5,000; without the test batch, as in EDM's archive.

    `source` is `cifar-10-python.tar.gz` as published, or the tar in it; a broken or incomplete file is a ValueError.
    """

    resolution = _SIDE
    channels = 3
    classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    unreadable_share = 0.0

    def __init__(self, *, source: Path | str) -> None:
        self._source = Path(source)
        self._all_pixels, self._labels = _read(self._source)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._all_pixels[index], int(self._labels[index])

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the path alone to another process: reading the file there is quicker than sending the pixels."""
        return partial(Cifar10, source=self._source), ()


def _read(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and classes of the five batches, one after the other."""
    try:
        contents = _contents(source)
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{source}: cannot be read as a tar archive ({error}); {_WAY_OUT}") from error
    missing = [name for name in _BATCHES if name not in contents]
    if missing:
        raise ValueError(f"{source}: holds no {', '.join(missing)}, so it is not CIFAR-10's Python archive; {_WAY_OUT}")
    batches = []
    for name in _BATCHES:
        with naming(f"{source}: {name}", fix=_WAY_OUT):
            batches.append(read_batch(contents[name]))
    counts = [len(labels) for _, labels in batches]
    if len(set(counts)) > 1:
        raise ValueError(f"{source}: its batches have {counts} images, expected equally many in each; {_WAY_OUT}")
    pixels, labels = zip(*batches, strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def _contents(source: Path) -> dict[str, bytes]:
    """Return the training batches by name; the archive is read as a stream."""
    found: dict[str, bytes] = {}
    with unpacked(regular_file(source)) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
        for number, member in enumerate(archive):
            if number >= _MOST_MEMBERS:
                raise tarfile.TarError(f"it has more than {_MOST_MEMBERS} members")
            # Before the stream moves on: skipping a member unpacks it.
            if member.size > _LARGEST_MEMBER:
                raise tarfile.TarError(f"{member.name[:80]} has {member.size:,} bytes, no member of CIFAR-10 has")
            name = PurePosixPath(member.name).name
            if name in _BATCHES and member.isreg() and (content := archive.extractfile(member)):
                if name in found:
                    raise tarfile.TarError(f"{name} is there twice")
                found[name] = content.read()
        # Only at its end is the checksum of a compressed file compared.
        if len(packed.read(_LARGEST_MEMBER)) == _LARGEST_MEMBER:
            raise tarfile.TarError(f"more than {_LARGEST_MEMBER:,} bytes follow its members")
    return found


def read_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the content of a batch's file: pixels, uint8 [N, 3, 32, 32], and classes, int64 [N]; else a ValueError."""
    if content[:1] != b"\x80":
        raise ValueError(f"not a pickle of protocol 2 or later: it begins with {content[:16]!r}")
    budget, file = Budget(file_size=len(content)), io.BytesIO(content)
    document = read_pickle(file, allowed=allowed_globals(budget), budget=budget)
    if rest := file.read():
        raise ValueError(f"{len(rest)} bytes follow the end of the pickle")
    if type(document) is not dict:
        raise ValueError(f"it holds {kind(document)}, not a dict with 'data' and 'labels'")
    # Texts of Python 2 are read as bytes.
    entries = {key.decode("latin-1") if type(key) is bytes else key: value for key, value in document.items()}
    array, labels = entries.get("data"), entries.get("labels")
    if type(array) is not StoredArray:
        raise ValueError(f"under 'data' it holds {kind(array)}, not an array of numpy")
    if array.shape is None or array.code != "u1" or array.shape[1] != _NUMBERS or not array.shape[0]:
        raise ValueError(f"its pixels are an array {list(array.shape or ())}, expected [N, {_NUMBERS}] of uint8")
    count = array.shape[0]
    if len(array.raw) != count * _NUMBERS:
        raise ValueError(f"its pixels {list(array.shape)} are {len(array.raw)} bytes, so it is damaged")
    if type(labels) is not list or len(labels) != count:
        given = f"{len(labels)} labels" if type(labels) is list else kind(labels)
        raise ValueError(f"under 'labels' it holds {given}, expected a list of {count}, one per image")
    if not all(type(label) is int and 0 <= label < Cifar10.classes for label in labels):
        raise ValueError(f"among its labels is one that is none of the classes 0 to {Cifar10.classes - 1}")
    return np.frombuffer(array.raw, np.uint8).reshape(-1, 3, _SIDE, _SIDE), np.array(labels, dtype=np.int64)
