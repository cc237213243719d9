"""Images of any size in a folder, a zip or a tar, made square by EDM's transforms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from onestep.config.constraints import Resolution, Share
from onestep.data import UnreadableImage
from onestep.data._pixels import center_crop, decode, scale
from onestep.data._sources import Entry, open_source

__all__ = ["Images"]

_TRANSFORMS = {"scale": scale, "center_crop": center_crop}


class Images:
    """Images in sorted order of their paths, each of any size and format that `_pixels.decode` reads.

    Nothing is unpacked to disk under a name from an archive. Links, names that lead outside and images that cannot be
    decoded raise `UnreadableImage` when they are read, so that they can be counted and listed.
    """

    def __init__(
        self,
        *,
        source: Path | str,  # a folder, a file .folder that names one, a zip or a tar (also gz, xz, bz2, or of tars)
        resolution: Resolution,  # H and W, a power of two
        transform: Literal["scale", "center_crop"],  # to a square, by the Lanczos filter; the crop is the largest one
        labels: Literal["folders", "none"],  # folders: the topmost ones that differ between images are classes
        channels: Literal[1, 3] = 3,  # 3 gives grey images three channels, 1 refuses those in colour
        root: str = "",  # only what is in this folder of the source counts, and paths begin there
        unreadable_share: Share = 0.0,  # largest share of the images that may be left out, in [0, 1]
    ) -> None:
        if resolution < 1 or resolution & (resolution - 1):
            raise ValueError(f"resolution must be a power of two, such as 64, found {resolution}")
        if transform not in _TRANSFORMS:
            raise ValueError(f"transform must be one of {', '.join(_TRANSFORMS)}, found {transform!r}")
        if labels not in ("folders", "none"):
            raise ValueError(f"labels must be folders or none, found {labels!r}")
        if not 0 <= unreadable_share <= 1:
            raise ValueError(f"unreadable_share is a share of the images, in [0, 1], found {unreadable_share}")
        self.resolution, self.channels, self.unreadable_share = resolution, channels, unreadable_share
        self._transform, self._source = _TRANSFORMS[transform], open_source(Path(source))
        # By folder, then by name, in archives as in folders: the order in which classes are numbered.
        # Differs from the reference: there the members of a zip are sorted as texts, "a-b/1" before "a/1".
        found = sorted(_below(self._source.entries(), root, source=source), key=lambda entry: entry.name.split("/"))
        # Of those with one name, the first is taken.
        self._entries = [
            entry._replace(refused="its name is there twice") if before and before.name == entry.name else entry
            for before, entry in zip([None, *found], found, strict=False)
        ]
        self.class_names: tuple[str, ...] = ()
        self._labels = [0] * len(self._entries)
        if labels == "folders":
            self._read_classes(source)
        self.classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        entry = self._entries[index]
        try:
            pixels = self._square(entry)
        except ValueError as error:
            raise UnreadableImage(entry.name, str(error)) from error
        return torch.from_numpy(pixels), self._labels[index]

    def _square(self, entry: Entry) -> np.ndarray:
        """Return one image, uint8 [C, H, W]."""
        if entry.refused is not None:
            raise ValueError(entry.refused)
        pixels = decode(self._source.read(entry))
        if self.channels == 1 and pixels.ndim == 3:
            raise ValueError("it is in colour, and the dataset has one channel")
        pixels = self._transform(pixels, resolution=self.resolution)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[: self.channels])

    def _read_classes(self, source: Path | str) -> None:
        """Number the class folders; an image beside them is refused."""
        paths = {index: entry.name.split("/") for index, entry in enumerate(self._entries) if entry.refused is None}
        depth = len(os.path.commonprefix([path[:-1] for path in paths.values()]))
        self.class_names = tuple(sorted({path[depth] for path in paths.values() if len(path) > depth + 1}))
        if not self.class_names:
            raise ValueError(f"{source}: its images are in no class folders. Fix: labels: none")
        numbers = {folder: number for number, folder in enumerate(self.class_names)}
        for index, path in paths.items():
            if len(path) > depth + 1:
                self._labels[index] = numbers[path[depth]]
            else:
                self._entries[index] = Entry("/".join(path), refused="it is in none of the class folders")


def _below(entries: list[Entry], root: str, *, source: Path | str) -> list[Entry]:
    """Return the entries below a folder, by their paths from there."""
    prefix = f"{root.strip('/')}/" if root.strip("/") else ""
    found = [entry._replace(name=entry.name[len(prefix) :]) for entry in entries if entry.name.startswith(prefix)]
    if not found:
        tops = sorted({entry.name.partition("/")[0] for entry in entries})
        there = f"; images are in {', '.join(tops[:8])}" if tops and prefix else ""
        raise ValueError(f"{source}: no images{f' below {root!r}' if prefix else ''}{there}")
    return found
