"""Images of any size in a folder, a zip or a tar, made square by EDM's transforms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from onestep.config.constraints import Resolution, Share
from onestep.data import UnreadableImage
from onestep.data._pixels import center_crop, decode, scale
from onestep.data._sources import Entry, log_unused, open_source, pictures

__all__ = ["Images"]

_TRANSFORMS = {"scale": scale, "center_crop": center_crop}
# Degrees: the pretext task of RotNet (arXiv:1803.07728), for images without labels.
_ROTATIONS = ("0", "90", "180", "270")


class Images:
    """Images in sorted order of their paths, each of any size and format that `_pixels.decode` reads.

    Nothing is unpacked to disk under a name from an archive. Links, names that lead outside and images that cannot be
    decoded raise `UnreadableImage` when they are read, so that they can be counted and listed. Hidden files and those
    without the ending of a picture are no images: `unused` has their number by reason. A class folder without an image
    is a ValueError.
    """

    def __init__(
        self,
        *,
        source: Path | str,  # a folder, a file .folder that names one, a zip or a tar (also gz, xz, bz2, or of tars)
        resolution: Resolution,  # H and W, a power of two
        transform: Literal["scale", "center_crop"],  # to a square, by the Lanczos filter; the crop is the largest one
        # folders: the topmost ones that differ between images are classes; rotations: every image in four of them
        labels: Literal["folders", "none", "rotations"],
        channels: Literal[1, 3] = 3,  # 3 gives grey images three channels, 1 refuses those in colour
        root: str = "",  # only what is in this folder of the source counts, and paths begin there
        unreadable_share: Share = 0.0,  # largest share of the images that may be left out, in [0, 1]
    ) -> None:
        if resolution < 1 or resolution & (resolution - 1):
            raise ValueError(f"resolution must be a power of two, such as 64, found {resolution}")
        if transform not in _TRANSFORMS:
            raise ValueError(f"transform must be one of {', '.join(_TRANSFORMS)}, found {transform!r}")
        if labels not in ("folders", "none", "rotations"):
            raise ValueError(f"labels must be folders, none or rotations, found {labels!r}")
        if not 0 <= unreadable_share <= 1:
            raise ValueError(f"unreadable_share is a share of the images, in [0, 1], found {unreadable_share}")
        self.resolution, self.channels, self.unreadable_share = resolution, channels, unreadable_share
        self.source = Path(source)
        self._transform, self._source = _TRANSFORMS[transform], open_source(self.source)
        listing = pictures(self._source, root)
        self.unused = listing.unused
        log_unused(listing.unused)
        if not listing.pictures:
            raise ValueError(f"{source}: no images{f' below {root!r}' if root else ''}{self._there(root)}")
        # By folder, then by name, in archives as in folders: the order in which classes are numbered.
        # Differs from the reference: there the members of a zip are sorted as texts, "a-b/1" before "a/1".
        found = sorted(listing.pictures, key=lambda entry: entry.name.split("/"))
        # Of those with one name, the first is taken.
        self._entries = [
            entry._replace(refused="its name is there twice") if before and before.name == entry.name else entry
            for before, entry in zip([None, *found], found, strict=False)
        ]
        self.class_names: tuple[str, ...] = ()
        self.refused_classes: tuple[str, ...] = ()  # folders of which all images are refused by name, size or kind
        self._labels = [0] * len(self._entries)
        self._turns = 1
        if labels == "folders":
            self._read_classes(listing.empty)
        elif labels == "rotations":
            self._turns, self.class_names = len(_ROTATIONS), _ROTATIONS
        self.classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self._entries) * self._turns

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        number, turn = divmod(index, self._turns)
        entry = self._entries[number]
        try:
            pixels = self._square(entry)
        except ValueError as error:
            raise UnreadableImage(entry.name, str(error)) from error
        if self._turns > 1:
            return np.rot90(pixels, turn, axes=(1, 2)).copy(), turn
        return pixels, self._labels[number]

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

    def stamp(self, index: int) -> list[object]:
        """Return what changes with an image or its class: name, size, times or place in its archive, class."""
        number, turn = divmod(index, self._turns)
        entry = self._entries[number]
        return [entry.name, *entry.stamp, turn if self._turns > 1 else self._labels[number]]

    def _read_classes(self, empty: frozenset[str]) -> None:
        """Number the class folders; an image beside them is refused, and so is an empty folder."""
        paths = [entry.name.split("/") for entry in self._entries]
        taken = [path for path, entry in zip(paths, self._entries, strict=True) if entry.refused is None]
        prefix = os.path.commonprefix([path[:-1] for path in taken])
        depth = len(prefix)
        self.class_names = tuple(sorted({path[depth] for path in taken if len(path) > depth + 1}))
        if not self.class_names:
            unusable = next((f" ({each.name}: {each.refused})" for each in self._entries if each.refused), "")
            raise ValueError(f"{self.source}: its images are in no class folders{unusable}. Fix: labels: none")
        refused = {path[depth] for path in paths if path[:depth] == prefix and len(path) > depth + 1} - {"", ".."}
        listed = (name.split("/") for name in empty)
        without = {path[depth] for path in listed if path[:depth] == prefix and len(path) == depth + 1}
        # A link to a folder and a damaged tar in a tar are refused, each as one image.
        known = {entry.name.removesuffix(".tar") for entry in self._entries if entry.refused is not None}
        if missing := sorted(name for name in without if "/".join([*prefix, name]) not in known):
            found = f"{self.source}: got no images in the class folders {', '.join(missing[:8])}"
            raise ValueError(f"{found}, expected at least one in each. Fix: add images, or remove the folders")
        self.refused_classes = tuple(sorted((refused | without) - set(self.class_names)))
        numbers = {folder: number for number, folder in enumerate(self.class_names)}
        for index, (entry, path) in enumerate(zip(self._entries, paths, strict=True)):
            if entry.refused is None and len(path) > depth + 1:
                self._labels[index] = numbers[path[depth]]
            elif entry.refused is None:
                self._entries[index] = Entry(entry.name, refused="it is in none of the class folders")

    def _there(self, root: str) -> str:
        """Return where images are when none are in a folder of the source, for a message."""
        tops = sorted({entry.name.partition("/")[0] for entry in pictures(self._source).pictures}) if root else []
        return f"; images are in {', '.join(tops[:8])}" if tops else ""
