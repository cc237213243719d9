"""Encoded pictures in parts, each a file beside the archive to be: what several processes make, and a kill leaves.

A part holds the same pictures whoever makes it, so the archive does not depend on the number of processes or on how
often the work was taken up.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onestep.archive import read_arrays, write_arrays
from onestep.data import Dataset, UnreadablePicture
from onestep.data._png import checked, png
from onestep.data._processes import answers
from onestep.files import canonical_json, read_json, write_json

_logger = logging.getLogger(__name__)

_PICTURES = 256  # in a part: a few MB, and less than a minute of work whatever the pictures
_SECONDS_BETWEEN_LINES = 10


class Part(NamedTuple):
    """What became of a range of a dataset's indices.

    Attributes:
        pictures: The PNG file and the label of each picture that could be read; None for unlabelled.
        unreadable: Name and reason of each that could not.
    """

    pictures: list[tuple[bytes, int | None]]
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one dataset in a folder.

    Attributes:
        folder: Where they are.
        pictures: Length of the dataset.
    """

    folder: Path
    pictures: int

    @property
    def numbers(self) -> range:
        """All parts, made or not."""
        return range(-(-self.pictures // _PICTURES))

    def indices(self, number: int) -> range:
        """Return the dataset's indices that belong to a part."""
        return range(number * _PICTURES, min((number + 1) * _PICTURES, self.pictures))

    def path(self, number: int) -> Path:
        """Return where a part is, or will be."""
        return self.folder / f"{number:06d}.npz"

    def read(self) -> Iterator[Part]:
        """Yield all parts in order."""
        return (_read(self.path(number)) for number in self.numbers)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


def parts_of(dataset: Dataset, *, folder: Path, origin: object, workers: int) -> Parts:
    """Make all parts of a dataset, but for those that are there already and are of the same origin.

    Args:
        dataset: The pictures.
        folder: Receives the parts; nothing else may be there.
        origin: What the pictures follow from, as JSON; None where nobody knows, and then nothing is taken up.
        workers: Most processes that work at once.

    Raises:
        ValueError: A picture does not fit the format, or a process died.
    """
    _clear_unless(folder, origin=origin)
    parts = Parts(folder=folder, pictures=len(dataset))
    missing = [number for number in parts.numbers if not parts.path(number).exists()]
    progress = _Progress(parts, missing=missing)
    for number, _ in answers(_make, (dataset, parts), missing, processes=workers):
        progress.made(number)
    return parts


def _clear_unless(folder: Path, *, origin: object) -> None:
    """Remove parts that follow from something else."""
    mark = folder / "origin.json"
    if origin is not None and mark.exists() and canonical_json(read_json(mark)) == canonical_json(origin):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(mark, origin)


def _make(shared: tuple[Dataset, Parts], number: int) -> None:
    dataset, parts = shared
    pictures: list[tuple[bytes, int]] = []
    unreadable: list[tuple[str, str]] = []
    for index in parts.indices(number):
        try:
            pixels, label = dataset[index]
            expected = (dataset.channels, dataset.resolution, dataset.resolution)
            pictures.append((png(checked(pixels, name=f"picture {index}", expected=expected)), label))
        except UnreadablePicture as error:
            unreadable.append((error.name, error.reason))
    arrays = {
        "png": np.frombuffer(b"".join(content for content, _ in pictures), np.uint8),
        "sizes": np.array([len(content) for content, _ in pictures], np.int64),
        "labels": np.array([label for _, label in pictures], np.int64),
    }
    write_arrays(parts.path(number), arrays, about={"unreadable": unreadable, "labelled": bool(dataset.classes)})


def _read(path: Path) -> Part:
    arrays, about = read_arrays(path)
    ends = np.cumsum(arrays["sizes"]).tolist()
    content = arrays["png"].tobytes()
    labels = arrays["labels"].tolist() if about["labelled"] else [None] * len(ends)
    pictures = [
        (content[start:end], label) for start, end, label in zip([0, *ends[:-1]], ends, labels, strict=bool(ends))
    ]
    return Part(pictures, [(name, reason) for name, reason in about["unreadable"]])


class _Progress:
    """Says every ten seconds how far the work is and how long it will take."""

    def __init__(self, parts: Parts, *, missing: list[int]) -> None:
        self._parts = parts
        self._left = sum(len(parts.indices(number)) for number in missing)
        self._begun, self._said = time.monotonic(), time.monotonic()
        self._taken_up = parts.pictures - self._left
        if self._taken_up:
            _logger.info("taken up: %s of %s pictures are there", f"{self._taken_up:,}", f"{parts.pictures:,}")

    def made(self, number: int) -> None:
        """Count a part."""
        self._left -= len(self._parts.indices(number))
        now = time.monotonic()
        if now - self._said >= _SECONDS_BETWEEN_LINES and self._left:
            self._said = now
            self._say(seconds=now - self._begun)

    def _say(self, *, seconds: float) -> None:
        total = self._parts.pictures
        rate = (total - self._left - self._taken_up) / seconds
        _logger.info(
            "%s of %s pictures, %.0f/s, %.0f s left", f"{total - self._left:,}", f"{total:,}", rate, self._left / rate
        )
