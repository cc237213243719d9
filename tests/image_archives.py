"""Datasets of given images, written as archives by the package's own preparation; folders and zips of files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onestep.data._archive import prepare


class GivenImages:
    """A dataset of pixels, uint8 [C, H, W], and classes in memory; one class None makes it unlabelled."""

    class_names: tuple[str, ...] = ()
    unreadable_share = 0.0

    def __init__(self, images: Iterable[tuple[Tensor | np.ndarray, int | None]]) -> None:
        self._images = [(torch.as_tensor(pixels), label) for pixels, label in images]
        shape = self._images[0][0].shape if self._images else (3, 8, 8)
        self.channels, self.resolution = shape[0], shape[-1]
        labels = [-1 if label is None else int(label) for _, label in self._images]
        self.classes = max(labels) + 1 if labels and min(labels) >= 0 else 0

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self._images[index]
        return pixels, 0 if label is None else int(label)


def write_archive(path: Path, images: Iterable[tuple[Tensor | np.ndarray, int | None]]) -> None:
    """Write images and their classes as an archive, with its card and contact sheet beside it."""
    prepare(GivenImages(images), target=path)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
