"""Writing EDM's dataset archives (stored PNG files and a `dataset.json`), each with a card that says what is in it."""

from __future__ import annotations

import json
import logging
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from onestep.data import Dataset
from onestep.data._contact_sheet import write_contact_sheet
from onestep.data._parts import Parts, parts_of
from onestep.data._png import checked, png
from onestep.data._processes import answers
from onestep.data.image_zip import ImageZip
from onestep.files import replacing, sha256_of_file, write_json

_logger = logging.getLogger(__name__)

_DESCRIBED_AT_ONCE = 256
_LISTED_IN_AN_ERROR = 3


def prepare(dataset: Dataset, *, target: Path | str, origin: object = None, workers: int = 1) -> dict[str, Any]:
    """Write a dataset as the one file that all later stages read and, beside it, its card and its contact sheet.

    The same pictures give the same bytes for any number of workers. Work that was cut off is taken up: until the
    archive is whole, what is done stands in `.{target name}.parts` beside it. The card, `{target stem}.json`, is taken
    from the archive as read back, so that it also proves that the archive can be read.

    Args:
        dataset: The pictures.
        target: The archive, `.zip`.
        origin: What the pictures follow from, as JSON: work of another origin is not taken up. None: none is.
        workers: Most processes that work at once.

    Returns:
        The card, see `describe`; besides, `class_names` as the source has them, and `unreadable`: name and reason of
        each picture that was left out.

    Raises:
        ValueError: The pictures do not fit the format, or more than `dataset.unreadable_share` of them are unreadable.
    """
    target = Path(target)
    folder = target.with_name(f".{target.name}.parts")
    parts = parts_of(dataset, folder=folder, origin=origin, workers=workers)
    unreadable = _unreadable(parts, limit=dataset.unreadable_share)
    _write(target, (picture for part in parts.read() for picture in part.pictures))
    archive = ImageZip(source=target)
    card = describe(archive, workers=workers)
    card |= {"class_names": list(dataset.class_names), "unreadable": unreadable}
    write_contact_sheet(target.with_suffix(".png"), archive, labels=archive.labels())
    write_json(target.with_suffix(".json"), card)
    parts.remove()
    return card


def _unreadable(parts: Parts, *, limit: float) -> list[dict[str, str]]:
    """Return what could not be read, and say it; refuse too much of it."""
    found = [{"name": name, "reason": reason} for part in parts.read() for name, reason in part.unreadable]
    for picture in found:
        _logger.warning("left out: %s: %s", picture["name"], picture["reason"])
    if found and (len(found) > limit * parts.pictures or len(found) == parts.pictures):
        first = "; ".join(f"{picture['name']}: {picture['reason']}" for picture in found[:_LISTED_IN_AN_ERROR])
        raise ValueError(
            f"{len(found):,} of {parts.pictures:,} pictures cannot be read, more than unreadable_share ({limit:g}) "
            f"allows: {first}{' ...' if found[_LISTED_IN_AN_ERROR:] else ''}; all are listed above; mend them, or "
            "raise unreadable_share"
        )
    return found


def describe(archive: ImageZip, *, workers: int = 1) -> dict[str, Any]:
    """Return the card of an archive, which is read from its first picture to its last by at most so many processes.

    Returns:
        `images`, `resolution`, `channels`, `classes`; `images_per_class`, a list by class (empty if unlabelled);
        `pixel_mean` and `pixel_std`, a number in 0..255 for each channel; `sha256` of the archive.
    """
    starts = range(0, len(archive), _DESCRIBED_AT_ONCE)
    sums = np.zeros((2, archive.channels), dtype=np.uint64)
    for _, some in answers(_sums, archive, starts, processes=workers):
        sums += some
    count = len(archive) * archive.resolution**2
    moments = [_mean_and_std(int(total), int(squares), count) for total, squares in sums.T]
    per_class = np.bincount(archive.labels(), minlength=archive.classes) if archive.classes else np.zeros(0, np.int64)
    return {
        "images": len(archive),
        "resolution": archive.resolution,
        "channels": archive.channels,
        "classes": archive.classes,
        "images_per_class": per_class.tolist(),
        "pixel_mean": [mean for mean, _ in moments],
        "pixel_std": [std for _, std in moments],
        "sha256": sha256_of_file(archive.source),
    }


def write_archive(path: Path | str, pictures: Iterable[tuple[Tensor | np.ndarray, int | None]]) -> None:
    """Write pictures as an archive that EDM, D2O and `ImageZip` read; the same pictures give the same bytes.

    Members are `NNNNN/imgNNNNNNNN.png` (the folder repeats the index's first five digits) and, last,
    `dataset.json`: `{"labels": [[member, class], ...]}`, or `{"labels": null}` if any picture has no label.
    Nothing is compressed. The archive appears whole or not at all.

    Args:
        path: The archive.
        pictures: Pixels, uint8 [C, H, W], and class of each picture; all of one shape.

    Raises:
        ValueError: There are no pictures, or one does not fit the format.
    """
    _write(Path(path), _encoded(pictures))


def _encoded(
    pictures: Iterable[tuple[Tensor | np.ndarray, int | None]],
) -> Iterator[tuple[bytes, int | None]]:
    expected: tuple[int, ...] | None = None
    for index, (picture, label) in enumerate(pictures):
        pixels = checked(picture, name=_name(index), expected=expected)
        expected = pixels.shape
        yield png(pixels), None if label is None else int(label)


def _write(path: Path, pictures: Iterable[tuple[bytes, int | None]]) -> None:
    """Write encoded pictures and their labels as an archive."""
    labels: list[tuple[str, int | None]] = []
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for index, (content, label) in enumerate(pictures):
            archive.writestr(_member(_name(index)), content)
            labels.append((_name(index), label))
        if not labels:
            raise ValueError(f"{path}: there are no pictures to write")
        archive.writestr(_member("dataset.json"), _labels_json(labels))


def _name(index: int) -> str:
    name = f"{index:08d}"
    return f"{name[:5]}/img{name}.png"


def _sums(archive: ImageZip, start: int) -> np.ndarray:
    """Return the sum and the sum of squares of each channel over some pictures, exact integers [2, C]."""
    indices = range(start, min(start + _DESCRIBED_AT_ONCE, len(archive)))
    numbers = np.stack([archive[index][0].numpy() for index in indices]).astype(np.uint32)
    return np.stack([each.sum(axis=(0, 2, 3), dtype=np.uint64) for each in (numbers, numbers**2)])


def _mean_and_std(total: int, squares: int, count: int) -> tuple[float, float]:
    """Return both from exact sums, so that they do not depend on the order of the pictures."""
    return total / count, math.sqrt(count * squares - total**2) / count


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member's header without the time, the machine or the user."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3  # Unix, whatever the machine
    member.external_attr = 0o644 << 16
    return member


def _labels_json(labels: list[tuple[str, int | None]]) -> str:
    """Spell the labels as EDM does: one missing label makes the whole dataset unlabelled."""
    complete = all(label is not None for _, label in labels)
    return json.dumps({"labels": labels if complete else None})
