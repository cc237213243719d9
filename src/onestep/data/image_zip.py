"""EDM's dataset archives: a zip of images and a `dataset.json` with their labels."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["ImageZip"]


class ImageZip:
    """A dataset archive in the format of EDM's `dataset_tool.py`, read image by image.

    The images are the members with an image's file extension, in sorted order. Labels are in the member
    `dataset.json`; an archive without it, or with `{"labels": null}`, is unlabelled: `classes` is 0 and every
    label is 0. An archive in another format, or damaged anywhere, is a ValueError that names the member. The object may
    be used from forked and from spawned worker processes.
    """

    class_names: tuple[str, ...] = ()
    unreadable_share = 0.0

    def __init__(self, *, source: Path | str) -> None:
        self.source = Path(source)
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        members = self._archive().namelist()
        extensions = Image.registered_extensions()
        self._names = sorted(name for name in members if Path(name).suffix.lower() in extensions)
        if not self._names:
            raise ValueError(f"{self.source}: no images among its {len(members)} members; expected NNNNN/img*.png")
        labels = self._read_labels() if "dataset.json" in members else None
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

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when going to another process."""
        return {**self.__dict__, "_opened": None}

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all pixels, uint8 [N, C, H, W], and all labels, int64 [N]."""
        pixels = np.empty((len(self), self.channels, self.resolution, self.resolution), dtype=np.uint8)
        for index, name in enumerate(self._names):
            pixels[index] = self._pixels(name)
        return pixels, self.labels()

    def _archive(self) -> zipfile.ZipFile:
        """Return the open archive; each process opens its own, because a fork shares the file's position."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.source)
            except (OSError, zipfile.BadZipFile) as error:
                raise ValueError(f"{self.source}: cannot be read as a zip archive ({error}); build it again") from error
        return self._opened[1]

    def _read_labels(self) -> list[int] | None:
        """Return the label of each image, or None if the archive is unlabelled."""
        try:
            labels = json.loads(self._archive().read("dataset.json"))["labels"]
            if labels is None:
                return None
            by_name = dict(labels)
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            expected = "{'labels': [[member, class], ...]}"
            raise ValueError(f"{self.source}: dataset.json is not {expected} ({error!r}); build it again") from error
        for name in self._names:
            if type(label := by_name.get(name)) is not int or label < 0:
                found = f"{self.source}: dataset.json gives {name} the label {label!r}"
                fix = 'give every image a class, or none ("labels": null)'
                raise ValueError(f"{found}, expected a class 0, 1, 2, ...; {fix}")
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
        try:
            with Image.open(io.BytesIO(self._archive().read(name))) as picture:
                mode, pixels = picture.mode, np.array(picture)
        except (OSError, SyntaxError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.source}: cannot read {name} ({error}); build the archive again") from error
        if mode not in ("L", "RGB"):
            raise ValueError(f"{self.source}: {name} has the colour mode {mode}, expected L (grey) or RGB; convert it")
        return pixels[None] if mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
