"""EDM's dataset archives: a zip of images and a `dataset.json` with their labels."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onestep.data._pixels import decode
from onestep.data._sources import FORMATS, Entry, ZipSource, pictures
from onestep.folders import is_hidden

__all__ = ["ImageZip"]

_LABELS = "dataset.json"
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
        self._names = self._read_names()
        labels = self._read_labels()
        self.classes = 0 if labels is None else max(labels) + 1
        self._labels = np.array(labels or [0] * len(self._names), dtype=np.int64)
        self.channels, self.resolution = self._decoded(self._names[0]).shape[:2]
        self._pixels(self._names[0])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self._pixels(self._names[index])), int(self._labels[index])

    def labels(self) -> np.ndarray:
        """Return all classes, int64 [N]."""
        return self._labels.copy()

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all pixels, uint8 [N, C, H, W], and all labels, int64 [N]."""
        pixels = np.empty((len(self), self.channels, self.resolution, self.resolution), dtype=np.uint8)
        for index, name in enumerate(self._names):
            pixels[index] = self._pixels(name)
        return pixels, self.labels()

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
        members = self._zip.names()
        if _LABELS not in members:
            if elsewhere := [name for name in members if posixpath.basename(name) == _LABELS and not is_hidden(name)]:
                found = f"{self.source}: got the labels {elsewhere[0]}, expected {_LABELS} outside of all folders"
                raise ValueError(f"{found}. Fix: build the archive again, from within the folder")
            return None
        least, each = _LARGEST_LABELS
        try:
            content = self._zip.read(Entry(_LABELS, _LABELS), most=least + each * len(self._names))
            labels = json.loads(content)["labels"]
            if labels is None:
                return None
            by_name = dict(labels)
            if len(by_name) < len(labels):
                raise ValueError("it has two labels of one member")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            expected = "{'labels': [[member, class], ...]}"
            raise ValueError(f"{self.source}: dataset.json is not {expected} ({error!r}); build it again") from error
        for name in self._names:
            if type(label := by_name.get(name)) is not int or not 0 <= label < _MOST_CLASSES:
                found = f"{self.source}: dataset.json gives {name} the label {str(label)[:40]}"
                fix = 'give every image a class, or none ("labels": null)'
                raise ValueError(f"{found}, expected a class 0, 1, ..., {_MOST_CLASSES - 1:,}; {fix}")
        return [by_name[name] for name in self._names]

    def _pixels(self, name: str) -> np.ndarray:
        """Return one image, which has the shape of the first: uint8 [C, H, W]."""
        pixels = self._decoded(name)
        found = f"{self.source}: {name} has the shape [C, H, W] = {list(pixels.shape)}"
        expected = [self.channels, self.resolution, self.resolution]
        if list(pixels.shape) != expected:
            raise ValueError(f"{found}, expected the square {expected}; crop or scale all images to one size")
        if self.resolution & (self.resolution - 1):
            raise ValueError(f"{found}, expected a side that is a power of two; scale the images")
        return pixels

    def _decoded(self, name: str) -> np.ndarray:
        form = FORMATS[posixpath.splitext(name)[1].lower()]
        try:
            pixels = decode(self._zip.read(Entry(name, name)), formats=(form,), convert=False)
        except ValueError as error:
            raise ValueError(f"{self.source}: cannot read {name} ({error}); build the archive again") from error
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
