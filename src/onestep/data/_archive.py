"""Preparation: a dataset becomes EDM's archive (stored PNG files, `dataset.json`), a card and a contact sheet.

Images are encoded in shards, each a file beside the archive. A shard holds the same images whichever process makes it,
so the archive depends neither on the number of processes nor on interruptions.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from onestep.archive import read_arrays, write_arrays
from onestep.data import Dataset, UnreadableImage
from onestep.data._pixels import checked, png, write_contact_sheet
from onestep.data._processes import in_processes
from onestep.data.image_zip import ImageZip
from onestep.files import canonical_json, read_json, replacing, sha256_of_file, write_json
from onestep.progress import Bar

_logger = logging.getLogger(__name__)

_SHARD_FORMAT = 2  # of the files of shards; others are not resumed from
_SHARD = 256  # images: a few MB, and less than a minute of work
_LISTED_IN_AN_ERROR = 3


def prepare(
    dataset: Dataset, *, target: Path | str, origin: object = None, workers: int = 1, shard: int = _SHARD
) -> dict[str, Any]:
    """Write a dataset as an archive (.zip) and, beside it, its card (.json) and its contact sheet (.png).

    Equal images give equal bytes, whatever the number of `workers` and of images per `shard`. An interrupted
    preparation resumes from the shards in `.{target name}.parts` if their `origin` is equal: everything that the images
    depend on, as JSON (None: never). Images that do not fit the format, more unreadable ones than the dataset's share,
    or a worker process that died are a ValueError.

    Returns:
        The card, computed from the archive as read back: `images`, `resolution`, `channels`, `classes`;
        `images_per_class`, a list by class (empty if unlabelled); `pixel_mean` and `pixel_std`, a number in 0..255 for
        each channel; `sha256` of the archive; `class_names`; and name and reason of each `unreadable` image.
    """
    target = Path(target)
    folder = target.with_name(f".{target.name}.parts")
    _clear_unless(folder, origin=origin, size=shard)
    shards = [
        _Shard(folder / f"{number:06d}.npz", range(start, min(start + shard, len(dataset))))
        for number, start in enumerate(range(0, len(dataset), shard))
    ]
    _encode(dataset, shards, workers=workers)
    unreadable = _unreadable(shards, limit=dataset.unreadable_share)
    _write(target, shards, labelled=bool(dataset.classes))
    archive = ImageZip(source=target)
    card = _card(archive, workers=workers)
    card |= {"class_names": list(dataset.class_names), "unreadable": unreadable}
    write_contact_sheet(target.with_suffix(".png"), archive)
    write_json(target.with_suffix(".json"), card)
    shutil.rmtree(folder)
    return card


def origin_of(source: Path, *, options: Mapping[str, Any], code: str) -> dict[str, Any]:
    """Return the origin of a dataset for `prepare`, as JSON; `code` is the fingerprint of the code that prepares it.

    The source is identified by size and date: a digest of 150 GB would take longer than the work that resuming saves.
    """
    known = source.stat()
    return {
        # The limit of unreadable images does not change the images.
        "options": {key: value for key, value in options.items() if key != "unreadable_share"},
        "source": [str(source.resolve()), known.st_size, known.st_mtime_ns],
        "code": code,
        "pillow": PIL.__version__,
    }


def _card(archive: ImageZip, *, workers: int) -> dict[str, Any]:
    """Return the part of the card that is computed from the archive; all of it is read."""
    sums = sum(some for _, some in in_processes(_sums, archive, range(0, len(archive), _SHARD), workers=workers))
    count = len(archive) * archive.resolution**2
    # From exact sums, so that they do not depend on the order of the images.
    totals, squares = np.asarray(sums).tolist()
    deviations = [math.sqrt(count * square - total**2) / count for total, square in zip(totals, squares, strict=True)]
    return {
        "images": len(archive),
        "resolution": archive.resolution,
        "channels": archive.channels,
        "classes": archive.classes,
        "images_per_class": np.bincount(archive.labels()).tolist() if archive.classes else [],
        "pixel_mean": [total / count for total in totals],
        "pixel_std": deviations,
        "sha256": sha256_of_file(archive.source),
    }


def _sums(archive: ImageZip, start: int) -> np.ndarray:
    """Return the sum and the sum of squares of each channel over one shard, exact integers [2, C]."""
    indices = range(start, min(start + _SHARD, len(archive)))
    numbers = np.stack([archive[index][0].numpy() for index in indices]).astype(np.uint32)
    return np.stack([each.sum(axis=(0, 2, 3), dtype=np.uint64) for each in (numbers, numbers**2)])


class _Shard(NamedTuple):
    """A file, and the indices of its images."""

    path: Path
    indices: range


def _clear_unless(folder: Path, *, origin: object, size: int) -> None:
    """Remove the shards in a folder that are of another origin, or of another size."""
    path, mark = folder / "origin.json", [_SHARD_FORMAT, origin, size]
    if origin is None or not path.exists() or canonical_json(read_json(path)) != canonical_json(mark):
        shutil.rmtree(folder, ignore_errors=True)
        write_json(path, mark)


def _read(shards: list[_Shard]) -> Iterator[tuple[list[bytes], list[int], list[dict[str, str]]]]:
    """Yield all shards in order: PNG files and labels of the readable images, name and reason of the others."""
    for shard in shards:
        arrays, about = read_arrays(shard.path)
        content, sizes = arrays["png"].tobytes(), arrays["sizes"]
        files = [content[end - size : end] for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
        yield files, arrays["labels"].tolist(), about["unreadable"]


def _encode(dataset: Dataset, shards: list[_Shard], *, workers: int) -> None:
    """Make the shards that are missing."""
    missing = [shard for shard in shards if not shard.path.exists()]
    done = len(dataset) - sum(len(shard.indices) for shard in missing)
    if done:
        _logger.info("resumed: %s of %s images are done", f"{done:,}", f"{len(dataset):,}")
    with Bar(total=len(dataset), initial=done, unit="image", disable=None) as progress:
        for shard, _ in in_processes(_encode_shard, dataset, missing, workers=workers):
            progress.update(len(shard.indices))


def _encode_shard(dataset: Dataset, shard: _Shard) -> None:
    expected = (dataset.channels, dataset.resolution, dataset.resolution)
    files: list[bytes] = []
    labels: list[int] = []
    unreadable: list[dict[str, str]] = []
    for index in shard.indices:
        try:
            pixels, label = dataset[index]
            files.append(png(checked(pixels, name=f"image {index}", expected=expected)))
            labels.append(label)
        except UnreadableImage as error:
            unreadable.append({"name": error.name, "reason": error.reason})
    arrays: dict[str, np.ndarray] = {
        "png": np.frombuffer(b"".join(files), np.uint8),
        "sizes": np.array([len(content) for content in files], np.int64),
        "labels": np.array(labels, np.int64),
    }
    write_arrays(shard.path, arrays, about={"unreadable": unreadable})


def _unreadable(shards: list[_Shard], *, limit: float) -> list[dict[str, str]]:
    """Return and log the unreadable images; refuse more than a share of `limit`."""
    found = [image for _, _, unreadable in _read(shards) for image in unreadable]
    lines = [f"{image['name']}: {image['reason']}" for image in found]
    for line in lines:
        _logger.warning("left out: %s", line)
    images = sum(len(shard.indices) for shard in shards)
    if found and (len(found) > limit * images or len(found) == images):
        first = "; ".join(lines[:_LISTED_IN_AN_ERROR]) + (" ..." if lines[_LISTED_IN_AN_ERROR:] else "")
        raise ValueError(
            f"unreadable_share: {len(found):,} of {images:,} images cannot be read, expected at most a share of "
            f"{limit:g}: {first}. Fix: repair them (all are listed above), or raise unreadable_share"
        )
    return found


def _write(path: Path, shards: list[_Shard], *, labelled: bool) -> None:
    """Write encoded images and their labels as an archive."""
    labels: list[tuple[str, int]] = []
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for files, classes, _ in _read(shards):
            for content, label in zip(files, classes, strict=True):
                number = f"{len(labels):08d}"
                name = f"{number[:5]}/img{number}.png"
                archive.writestr(_member(name), content)
                labels.append((name, label))
        if not labels:
            raise ValueError(f"{path}: got no images, expected at least one")
        archive.writestr(_member("dataset.json"), json.dumps({"labels": labels if labelled else None}))


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member's header without the time, the machine or the user."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3  # Unix, whatever the machine
    member.external_attr = 0o644 << 16
    return member
