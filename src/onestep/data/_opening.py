"""Archives of pixels and of latents alike: which one a file is, and its images in several processes."""

from __future__ import annotations

import functools
import struct
import zipfile
from pathlib import Path

import numpy as np

from onestep.data._zip_members import LABELS, plain_members
from onestep.data.image_zip import ImageZip
from onestep.data.latent_zip import ENDING, LatentZip
from onestep.files import regular_file

_LOCAL_HEADER, _LOCAL = struct.Struct("<4s22xH2x"), b"PK\3\4"


def open_archive(path: Path) -> ImageZip | LatentZip:
    """Open a dataset archive by its content; ValueError as of its class."""
    return LatentZip(source=path) if holds_latents(path) else ImageZip(source=path)


def holds_latents(path: Path) -> bool:
    """Whether the first member of an archive is a file of numpy; where the labels are first, whether any is."""
    with open(regular_file(path), "rb") as file:
        head = file.read(_LOCAL_HEADER.size)
        if len(head) < _LOCAL_HEADER.size or head[:4] != _LOCAL:
            return False
        name = file.read(_LOCAL_HEADER.unpack(head)[1]).decode("utf-8", "replace")
    if name != LABELS and not name.endswith("/"):
        return name.endswith(ENDING)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(each.endswith(ENDING) for each in archive.namelist())
    except Exception:  # of a damaged directory, which is refused where it is read
        return False


def read_part(shared: tuple[Path, Path], indices: range) -> None:
    """Read some images of an archive into their rows of a file of numpy with those of all; `shared` is both.

    Each process lists the archive itself: the list of a million images is too long to be sent to all.
    """
    source, target = shared
    rows = np.load(target, mmap_mode="r+", allow_pickle=False)
    status = source.stat()
    reader = _reader(source, status.st_size, status.st_mtime_ns)
    for index in indices:
        reader.read_into(rows, index)
    rows.flush()


class _Reader:
    """Images of an archive by number, without its labels where it is plain."""

    def __init__(self, source: Path) -> None:
        self._source, self._plain, self._whole = source, plain_members(source), list[ImageZip | LatentZip]()

    def read_into(self, rows: np.ndarray, index: int) -> None:
        found = None if self._plain is None else self._plain.pixels(index)
        if found is not None and found.shape == rows.shape[1:]:
            rows[index] = found
            return
        self._whole = self._whole or [open_archive(self._source)]
        self._whole[0].read_into(rows, range(index, index + 1))


@functools.lru_cache(maxsize=1)
def _reader(source: Path, size: int, time_ns: int) -> _Reader:
    """Return the reader of an archive in one state of it."""
    return _Reader(source)
