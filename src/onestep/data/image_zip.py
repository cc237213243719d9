"""EDM's dataset archives: a zip of images and a `dataset.json` with their labels."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onestep.data._labels import read_labels
from onestep.data._pixels import decode
from onestep.data._sources import FORMATS, Entry, ZipSource, pictures
from onestep.data._zip_members import plain_members

__all__ = ["ImageZip"]


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
    latents: ClassVar[bool] = False

    def __init__(self, *, source: Path | str) -> None:
        self.source = Path(source)
        self._zip = ZipSource(self.source)
        self._plain = plain_members(self.source)
        # Bytes [N] of a plain archive: a million texts would take 100 MB.
        self._names: Any = self._read_names() if self._plain is None else self._plain.names
        labels = read_labels(self.source, self._names, plain=self._plain, archive=self._zip).labels
        self.classes = 0 if labels is None else max(labels) + 1
        self._labels = np.array(labels or [0] * len(self._names), dtype=np.int64)
        self.channels, self.resolution = self._decoded(0).shape[:2]
        self._pixels(0)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._pixels(index), int(self._labels[index])

    @property
    def stored(self) -> tuple[int, int, int]:
        """C, H and W of the array of an image."""
        return self.channels, self.resolution, self.resolution

    def labels(self) -> np.ndarray:
        """Return all classes, int64 [N]."""
        return self._labels.copy()

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all pixels, uint8 [N, C, H, W], and all labels, int64 [N]."""
        pixels = np.empty((len(self), *self.stored), dtype=np.uint8)
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
