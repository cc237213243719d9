"""EDM2's dataset archives of latents: a zip of .npy files and a `dataset.json` with their labels."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onestep.data._labels import read_labels
from onestep.data._sources import Entry, ZipSource
from onestep.data._zip_members import plain_members
from onestep.folders import is_hidden

__all__ = ["LatentZip"]

ENDING = ".npy"
_LARGEST = 2**26  # bytes of a member
_MOST_CHANNELS, _LARGEST_SIDE = 64, 1024
_FIX = "Fix: build the archive again"


class LatentZip:
    """A dataset archive in the format of EDM2's `dataset_tool.py encode` (arXiv:2312.02696), read image by image.

    Each image is an array float32 [2 Z, H, W] in a file of numpy: the mean of its latents in the first Z channels,
    their standard deviation in the others, not scaled (`Codec`). Labels and order are those of `ImageZip`. An archive
    in another format, or damaged anywhere, is a ValueError that names the member.

    Attributes:
        channels: Z, those of the images that training draws.
        codec: What the latents were made with, as JSON, of archives that record it (`LatentCodec.origin`).
    """

    class_names: tuple[str, ...] = ()
    unreadable_share = 0.0
    latents: ClassVar[bool] = True

    def __init__(self, *, source: Path | str) -> None:
        self.source = Path(source)
        self._zip = ZipSource(self.source)
        self._plain = plain_members(self.source, ending=ENDING)
        self._names: Any = self._read_names() if self._plain is None else self._plain.names
        found = read_labels(self.source, self._names, plain=self._plain, archive=self._zip)
        codec = found.document.get("codec")
        self.codec: Mapping[str, Any] | None = codec if isinstance(codec, dict) else None
        self.classes = 0 if found.labels is None else max(found.labels) + 1
        self._labels = np.array(found.labels or [0] * len(self._names), dtype=np.int64)
        self.stored = self._expected_shape()
        self.channels, self.resolution = self.stored[0] // 2, self.stored[1]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._moments(index), int(self._labels[index])

    def labels(self) -> np.ndarray:
        """Return all classes, int64 [N]."""
        return self._labels.copy()

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return means and deviations of all images, float32 [N, 2 Z, H, W], and all labels, int64 [N]."""
        moments = np.empty((len(self), *self.stored), dtype=np.float32)
        self.read_into(moments, range(len(self)))
        return moments, self.labels()

    def read_into(self, moments: np.ndarray, indices: range) -> None:
        """Read the images `indices` into the same rows of `moments`, float32 [N, 2 Z, H, W]."""
        for index in indices:
            moments[index] = self._moments(index)

    def _name(self, index: int) -> str:
        name = self._names[index]
        return name.decode() if isinstance(name, bytes) else name

    def _read_names(self) -> list[str]:
        """Return the names of the members, sorted."""
        members = [entry for entry in self._zip.entries() if not is_hidden(entry.name)]
        found = [name for name in self._zip.names() if posixpath.splitext(name)[1] == ENDING and not is_hidden(name)]
        names = sorted(found)
        if not names:
            raise ValueError(f"{self.source}: no latents among its {len(members)} members; expected NNNNN/img*{ENDING}")
        if twice := [name for name, after in zip(names, names[1:], strict=False) if name == after]:
            raise ValueError(f"{self.source}: {twice[0]} is there twice, expected once. {_FIX}")
        return names

    def _expected_shape(self) -> tuple[int, int, int]:
        found = self._array(0)
        shape = found.shape
        fits = len(shape) == 3 and shape[1] == shape[2] and 0 < shape[1] <= _LARGEST_SIDE
        if not (fits and shape[0] % 2 == 0 and 0 < shape[0] <= 2 * _MOST_CHANNELS):
            expected = "[2 Z, H, H], mean and deviation of Z channels"
            raise ValueError(f"{self.source}: {self._name(0)} has the shape {list(shape)}, expected {expected}. {_FIX}")
        return shape[0], shape[1], shape[2]

    def _moments(self, index: int) -> np.ndarray:
        """Return mean and deviation of one image, checked."""
        found = self._array(index)
        where = f"{self.source}: {self._name(index)}"
        if found.shape != self.stored:
            raise ValueError(f"{where} has the shape {list(found.shape)}, expected {list(self.stored)}. {_FIX}")
        if not np.isfinite(found).all() or found[self.channels :].min() < 0:
            raise ValueError(f"{where}: got NaN, infinity or a deviation below 0, expected latents. {_FIX}")
        return found

    def _array(self, index: int) -> np.ndarray:
        name = self._name(index)
        try:
            content = None if self._plain is None else self._plain.read(index)
            if content is None:
                content = self._zip.read(Entry(name, name), most=_LARGEST)
            return array_of(content)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.source}: cannot read {name} ({reason}). {_FIX}") from error


def array_of(content: bytes) -> np.ndarray:
    """Return the array float32 in a file of numpy; ValueError: it is another one, or not whole."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"got format {version}, expected (1, 0)")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.dtype("<f4") or is_fortran:
        raise ValueError(f"got {dtype}{' in the order of Fortran' if is_fortran else ''}, expected float32")
    numbers = np.frombuffer(content, dtype, offset=file.tell())
    if min(shape, default=0) < 0 or numbers.size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"got {numbers.size:,} numbers, expected {list(shape)}")
    return numbers.reshape(shape)


def bytes_of(moments: np.ndarray) -> bytes:
    """Return means and deviations, float32 [2 Z, H, W], as a file of numpy."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(moments, "<f4"), version=(1, 0), allow_pickle=False)
    return file.getvalue()
