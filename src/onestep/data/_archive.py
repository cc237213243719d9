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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from tqdm import tqdm

from onestep.archive import read_arrays, write_arrays
from onestep.data import Dataset, UnreadableImage
from onestep.data._pixels import checked, png, write_contact_sheet
from onestep.data._processes import in_processes
from onestep.data.image_zip import ImageZip
from onestep.files import canonical_json, read_json, replacing, sha256_of_file, write_json

_logger = logging.getLogger(__name__)

_SHARD = 256  # images: a few MB, and less than a minute of work
_LISTED_IN_AN_ERROR = 3


def prepare(
    dataset: Dataset, *, target: Path | str, origin: object = None, workers: int = 1, shard: int = _SHARD
) -> dict[str, Any]:
    """Write a dataset as an archive and, beside it, its card and its contact sheet.

    Equal images give equal bytes. An interrupted preparation resumes from the shards in `.{target name}.parts`.
    The card, `{target stem}.json`, is computed from the archive as read back, which proves that it can be read.

    Args:
        dataset: The images.
        target: The archive, `.zip`.
        origin: Everything that the images depend on, as JSON: shards of another origin are not used. None: none are.
        workers: Largest number of processes.
        shard: Images per shard; the archive does not depend on it.

    Returns:
        The card: `images`, `resolution`, `channels`, `classes`; `images_per_class`, a list by class (empty if
        unlabelled); `pixel_mean` and `pixel_std`, a number in 0..255 for each channel; `sha256` of the archive;
        `class_names` of the source; and `unreadable`: name and reason of each image that was left out.

    Raises:
        ValueError: The images do not fit the format, more than `dataset.unreadable_share` of them are unreadable, or a
            worker process died.
    """
    target = Path(target)
    shards = _Shards(folder=target.with_name(f".{target.name}.parts"), images=len(dataset), size=shard)
    shards.clear_unless(origin)
    _encode(dataset, shards, workers=workers)
    unreadable = _unreadable(shards, limit=dataset.unreadable_share)
    _write(target, (image for images, _ in shards.read() for image in images))
    archive = ImageZip(source=target)
    card = _card(archive, workers=workers)
    card |= {"class_names": list(dataset.class_names), "unreadable": unreadable}
    write_contact_sheet(target.with_suffix(".png"), archive)
    write_json(target.with_suffix(".json"), card)
    shutil.rmtree(shards.folder)
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


@dataclass(frozen=True, kw_only=True)
class _Shards:
    """The shards of one dataset: files in a folder, `size` of its `images` in each."""

    folder: Path
    images: int
    size: int

    def numbers(self) -> range:
        return range(-(-self.images // self.size))

    def indices(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, self.images))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def clear_unless(self, origin: object) -> None:
        """Remove shards of another origin, or of another size."""
        mark, content = self.folder / "origin.json", canonical_json([origin, self.size])
        if origin is None or not mark.exists() or canonical_json(read_json(mark)) != content:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(mark, [origin, self.size])

    def read(self) -> Iterator[tuple[list[tuple[bytes, int | None]], list[tuple[str, str]]]]:
        """Yield all shards in order: PNG file and label of each readable image, name and reason of the others."""
        for number in self.numbers():
            arrays, about = read_arrays(self.path(number))
            content, sizes = arrays["png"].tobytes(), arrays["sizes"]
            files = [content[end - size : end] for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
            labels = arrays["labels"].tolist() if about["labelled"] else [None] * len(files)
            yield [*zip(files, labels, strict=True)], about["unreadable"]


def _encode(dataset: Dataset, shards: _Shards, *, workers: int) -> None:
    """Make the shards that are missing."""
    missing = [number for number in shards.numbers() if not shards.path(number).exists()]
    done = shards.images - sum(len(shards.indices(number)) for number in missing)
    if done:
        _logger.info("resumed: %s of %s images are done", f"{done:,}", f"{shards.images:,}")
    with tqdm(total=shards.images, initial=done, unit="image", disable=None) as progress:
        for number, _ in in_processes(_encode_shard, (dataset, shards), missing, workers=workers):
            progress.update(len(shards.indices(number)))


def _encode_shard(shared: tuple[Dataset, _Shards], number: int) -> None:
    dataset, shards = shared
    expected = (dataset.channels, dataset.resolution, dataset.resolution)
    files: list[bytes] = []
    labels: list[int] = []
    unreadable: list[tuple[str, str]] = []
    for index in shards.indices(number):
        try:
            pixels, label = dataset[index]
            files.append(png(checked(pixels, name=f"image {index}", expected=expected)))
            labels.append(label)
        except UnreadableImage as error:
            unreadable.append((error.name, error.reason))
    arrays: dict[str, np.ndarray] = {
        "png": np.frombuffer(b"".join(files), np.uint8),
        "sizes": np.array([len(content) for content in files], np.int64),
        "labels": np.array(labels, np.int64),
    }
    write_arrays(shards.path(number), arrays, about={"unreadable": unreadable, "labelled": bool(dataset.classes)})


def _unreadable(shards: _Shards, *, limit: float) -> list[dict[str, str]]:
    """Return and log the unreadable images; refuse more than a share of `limit`."""
    found = [{"name": name, "reason": reason} for _, others in shards.read() for name, reason in others]
    for image in found:
        _logger.warning("left out: %s: %s", image["name"], image["reason"])
    if found and (len(found) > limit * shards.images or len(found) == shards.images):
        first = "; ".join(f"{image['name']}: {image['reason']}" for image in found[:_LISTED_IN_AN_ERROR])
        raise ValueError(
            f"unreadable_share: {len(found):,} of {shards.images:,} images cannot be read, expected at most a share of "
            f"{limit:g}: {first}{' ...' if found[_LISTED_IN_AN_ERROR:] else ''}. Fix: repair them (all are listed "
            "above), or raise unreadable_share"
        )
    return found


def _write(path: Path, images: Iterable[tuple[bytes, int | None]]) -> None:
    """Write encoded images and their labels as an archive."""
    labels: list[tuple[str, int | None]] = []
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for index, (content, label) in enumerate(images):
            # The folder repeats the first five digits of the index.
            name = f"{index:08d}"[:5] + f"/img{index:08d}.png"
            archive.writestr(_member(name), content)
            labels.append((name, label))
        if not labels:
            raise ValueError(f"{path}: got no images, expected at least one")
        # As in EDM, one missing label makes the whole dataset unlabelled.
        complete = all(label is not None for _, label in labels)
        archive.writestr(_member("dataset.json"), json.dumps({"labels": labels if complete else None}))


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member's header without the time, the machine or the user."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3  # Unix, whatever the machine
    member.external_attr = 0o644 << 16
    return member
