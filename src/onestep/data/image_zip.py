"""EDM's dataset archives: a zip of images and a `dataset.json` with their labels."""

from __future__ import annotations

import functools
import json
import posixpath
from pathlib import Path
from typing import Any

import numpy as np

from onestep.data._pixels import decode
from onestep.data._sources import FORMATS, Entry, ZipSource, pictures
from onestep.data._zip_members import LABELS, plain_members
from onestep.folders import is_hidden

__all__ = ["ImageZip"]

_MOST_CLASSES = 100_000
_LARGEST_LABELS = 2**20, 2**10  # bytes of dataset.json: these, and for each image


class ImageZip:
    """A dataset archive in the format of EDM's `dataset_tool.py`, read image by image.

    The images are the members with an image's file extension, in sorted order; each has the format of its extension, 8
    bits a channel, and the colours L (grey) or RGB. Labels are in the member `dataset.json`; an archive without it, or
    with `{"labels": null}`, is unlabelled: `classes` is 0 and every label is 0. An archive in another format, or
    damaged anywhere, is a ValueError that names the member. The object may be used from forked and from spawned worker
    processes.
    """

    class_names: tuple[str, ...] = ()
    unreadable_share = 0.0

    def __init__(self, *, source: Path | str) -> None:
        self.source = Path(source)
        self._zip = ZipSource(self.source)
        self._plain = plain_members(self.source)
        # Bytes [N] of a plain archive: a million texts would take 100 MB.
        self._names: Any = self._read_names() if self._plain is None else self._plain.names
        labels = self._read_labels()
        self.classes = 0 if labels is None else max(labels) + 1
        self._labels = np.array(labels or [0] * len(self._names), dtype=np.int64)
        self.channels, self.resolution = self._decoded(0).shape[:2]
        self._pixels(0)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._pixels(index), int(self._labels[index])

    def labels(self) -> np.ndarray:
        """Return all classes, int64 [N]."""
        return self._labels.copy()

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all pixels, uint8 [N, C, H, W], and all labels, int64 [N]."""
        pixels = np.empty((len(self), self.channels, self.resolution, self.resolution), dtype=np.uint8)
        self.read_into(pixels, range(len(self)))
        return pixels, self.labels()

    def read_into(self, pixels: np.ndarray, indices: range) -> None:
        """Read the images `indices` into the same rows of `pixels`, uint8 [N, C, H, W]."""
        for index in indices:
            pixels[index] = self._pixels(index)

    def _name(self, index: int) -> str:
        """Return the name of an image."""
        name = self._names[index]
        return name.decode() if isinstance(name, bytes) else name

    def _read_names(self) -> list[str]:
        """Return the names of the images, sorted."""
        listing = pictures(self._zip)
        for entry in listing.pictures:
            if entry.refused is not None:
                raise ValueError(f"{self.source}: {entry.name}: {entry.refused}. Fix: build the archive again")
        names = sorted(entry.place.filename for entry in listing.pictures)
        if not names:
            others = sum(each.files for each in listing.unused)
            raise ValueError(f"{self.source}: no images among its {others} members; expected NNNNN/img*.png")
        if twice := [name for name, after in zip(names, names[1:], strict=False) if name == after]:
            raise ValueError(f"{self.source}: {twice[0]} is there twice, expected once. Fix: build the archive again")
        return names

    def _read_labels(self) -> list[int] | None:
        """Return the label of each image, or None if the archive is unlabelled."""
        if self._plain is not None and not self._plain.has_labels:
            return None
        members = [LABELS] if self._plain is not None else self._zip.names()
        if LABELS not in members:
            if elsewhere := [name for name in members if posixpath.basename(name) == LABELS and not is_hidden(name)]:
                found = f"{self.source}: got the labels {elsewhere[0]}, expected {LABELS} outside of all folders"
                raise ValueError(f"{found}. Fix: build the archive again, from within the folder")
            return None
        least, each = _LARGEST_LABELS
        most = least + each * len(self._names)
        try:
            content = None if self._plain is None else self._plain.labels(most=most)
            if content is None:
                content = self._zip.read(Entry(LABELS, LABELS), most=most)
            labels = json.loads(content)["labels"]
            if labels is None:
                return None
            by_name = dict(labels)
            if len(by_name) < len(labels):
                raise ValueError("it has two labels of one member")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            expected = "{'labels': [[member, class], ...]}"
            raise ValueError(f"{self.source}: dataset.json is not {expected} ({error!r}); build it again") from error
        names = self._names if self._plain is None else self._names.astype(str).tolist()
        for name in names:
            if type(label := by_name.get(name)) is not int or not 0 <= label < _MOST_CLASSES:
                found = f"{self.source}: dataset.json gives {name} the label {str(label)[:40]}"
                fix = 'give every image a class, or none ("labels": null)'
                raise ValueError(f"{found}, expected a class 0, 1, ..., {_MOST_CLASSES - 1:,}; {fix}")
        return [by_name[name] for name in names]

    def _pixels(self, index: int) -> np.ndarray:
        """Return one image, which has the shape of the first: uint8 [C, H, W]."""
        pixels = self._decoded(index)
        if pixels.shape == (self.channels, self.resolution, self.resolution) and self.resolution.bit_count() == 1:
            return pixels
        found = f"{self.source}: {self._name(index)} has the shape [C, H, W] = {list(pixels.shape)}"
        expected = [self.channels, self.resolution, self.resolution]
        if list(pixels.shape) != expected:
            raise ValueError(f"{found}, expected the square {expected}; crop or scale all images to one size")
        raise ValueError(f"{found}, expected a side that is a power of two; scale the images")

    def _decoded(self, index: int) -> np.ndarray:
        found = None if self._plain is None else self._plain.pixels(index)
        if found is None:
            found = self._decoded_in_general(self._name(index))
            found = found[None] if found.ndim == 2 else found.transpose(2, 0, 1)
        return np.ascontiguousarray(found)

    def _decoded_in_general(self, name: str) -> np.ndarray:
        """Return one image of any archive, uint8 [H, W] or [H, W, 3]; ValueError if it cannot be read."""
        form = FORMATS[posixpath.splitext(name)[1].lower()]
        try:
            return decode(self._zip.read(Entry(name, name)), formats=(form,), convert=False)
        except ValueError as error:
            raise ValueError(f"{self.source}: cannot read {name} ({error}); build the archive again") from error


def read_part(shared: tuple[Path, Path], indices: range) -> None:
    """Read some images of an archive into their rows of a file of numpy with the pixels of all; `shared` is both.

    Each process lists the archive itself: the list of a million images is too long to be sent to all.
    """
    source, target = shared
    pixels = np.load(target, mmap_mode="r+", allow_pickle=False)
    status = source.stat()
    reader = _reader(source, status.st_size, status.st_mtime_ns)
    for index in indices:
        reader.read_into(pixels, index)
    pixels.flush()


class _Reader:
    """Images of an archive by number, without its labels where it is plain."""

    def __init__(self, source: Path) -> None:
        self._source, self._plain, self._whole = source, plain_members(source), list[ImageZip]()

    def read_into(self, pixels: np.ndarray, index: int) -> None:
        found = None if self._plain is None else self._plain.pixels(index)
        if found is not None and found.shape == pixels.shape[1:]:
            pixels[index] = found
            return
        self._whole = self._whole or [ImageZip(source=self._source)]
        self._whole[0].read_into(pixels, range(index, index + 1))


@functools.lru_cache(maxsize=1)
def _reader(source: Path, size: int, time_ns: int) -> _Reader:
    """Return the reader of an archive in one state of it."""
    return _Reader(source)
