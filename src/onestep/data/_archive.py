"""Preparation: a dataset becomes EDM's archive (stored PNG files, `dataset.json`), a card and a contact sheet.

A dataset of latents becomes that of EDM2, of stored files of numpy; see `onestep.data._forms`.

Images are encoded in shards, each a file beside the archive. A shard holds the same images whichever process makes it,
so the archive depends neither on the number of processes nor on interruptions. It records what its images are made of.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import PIL

from onestep.archive import read_arrays, write_arrays
from onestep.data import Dataset, UnreadableImage
from onestep.data._contact_sheet import write_contact_sheet
from onestep.data._forms import LATENTS, PIXELS, Archive, Form
from onestep.data._processes import in_processes
from onestep.data._sources import Unused
from onestep.files import Lock, canonical_json, read_json, replacing, sealed, sha256_of_file, sha256_of_text, write_json
from onestep.folders import describe_folder, text_of
from onestep.progress import Bar

_logger = logging.getLogger(__name__)

_SHARD_FORMAT = 4  # of the files of shards; others are not resumed from
_SHARD = 256  # images: a few MB, and less than a minute of work
_LISTED_IN_AN_ERROR = 3
_LISTED_CLASSES = 20


@runtime_checkable
class FromFiles(Protocol):
    """What a dataset has, beyond the contract, if each of its images is a file of a folder or an archive."""

    source: Path
    class_names: tuple[str, ...]  # each of the folder of its images
    refused_classes: tuple[str, ...]  # folders of which no image can be used
    unused: tuple[Unused, ...]  # files that are no images

    def stamp(self, index: int) -> Sequence[object]:
        """Return what changes with an image or its class, as JSON."""
        ...


def prepare(
    dataset: Dataset, *, target: Path | str, origin: object = None, workers: int = 1, shard: int = _SHARD
) -> dict[str, Any]:
    """Write a dataset as an archive (.zip) and, beside it, its card (.json) and its contact sheet (.png).

    Equal images give equal bytes, whatever the number of `workers` and of images per `shard`. An interrupted
    preparation resumes from the shards in `.{target name}.parts` if their `origin` is equal: everything that the images
    depend on, as JSON (None: never). A shard of a dataset from files also needs the same files, all of them readable.
    Images that do not fit the format, more unreadable ones than the dataset's share, a class folder without a readable
    image, another process that prepares `target`, or a worker process that died are a ValueError.

    Returns:
        The card: `images`, `resolution`, `channels`, `classes`;
        `images_per_class`, a list by class (empty if unlabelled); `pixel_mean` and `pixel_std`, a number in 0..255 for
        each channel, or `latent_mean` and `latent_std`, of draws that are not scaled; `sha256` of the archive;
        `class_names`; name and reason of each `unreadable` image; and, of a dataset from files, reason, number and
        first name of the `unused` ones.
    """
    target = Path(target)
    folder = target.with_name(f".{target.name}.parts")
    with _only_process(folder / "lock", target=target):
        _clear_unless(folder, origin=origin, size=shard)
        shards = [
            _shard(dataset, folder / f"{number:06d}.npz", range(start, min(start + shard, len(dataset))))
            for number, start in enumerate(range(0, len(dataset), shard))
        ]
        _encode(dataset, shards, workers=workers)
        unreadable = _unreadable(dataset, shards)
        form = _form(dataset)
        _write(target, shards, ending=form.ending, labelled=bool(dataset.classes), **form.about(dataset))
        archive = form.opened(target)
        _expect_whole(target)
        card = _card(archive, shards, form=form)
        card |= {"class_names": list(dataset.class_names), "unreadable": unreadable}
        if isinstance(dataset, FromFiles):
            card["unused"] = [each._asdict() for each in dataset.unused]
        _log_classes(card)
        write_contact_sheet(target.with_suffix(".png"), archive)
        write_json(target.with_suffix(".json"), sealed(card))
        shutil.rmtree(folder)
    return card


def origin_of(dataset: Dataset, source: Path, *, options: Mapping[str, Any], code: str) -> dict[str, Any]:
    """Return the origin of a dataset for `prepare`, as JSON; `code` is the fingerprint of the code that prepares it.

    A source is identified by size and date, a folder by those of its files: a digest of 150 GB would take longer than
    the work that resuming saves. For a dataset from files, each shard has those of its own files instead.
    """
    known = source.stat()
    state: list[object] = [known.st_size, known.st_mtime_ns]
    codec = getattr(dataset, "codec", None)
    if isinstance(dataset, FromFiles):
        state = []
    elif source.is_dir():
        state = [describe_folder(source)]
    return {
        # The limit of unreadable images does not change the images.
        "options": {key: value for key, value in options.items() if key != "unreadable_share"},
        "source": [text_of(str(source.resolve())), *state],
        "code": code,
        "pillow": PIL.__version__,
        **({} if codec is None else {"codec": codec}),
    }


def _form(dataset: Dataset) -> Form:
    """Return what the images of a dataset are: pixels, or latents by its attribute `latents`."""
    return LATENTS if getattr(dataset, "latents", False) else PIXELS


@contextlib.contextmanager
def _only_process(path: Path, *, target: Path) -> Iterator[None]:
    """Hold the lock of a preparation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(path)
    if not lock.acquire():
        found = f"{target}: another process prepares it, expected one at a time"
        raise ValueError(f"{found}. Fix: wait until it ends, and run again")
    try:
        yield
    finally:
        lock.release()


def _expect_whole(path: Path) -> None:
    """Read an archive as it is on disk and compare the checksum of each member. ValueError: One is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        damaged = str(error)
    if damaged is not None:
        raise ValueError(f"{path}: got damage in {damaged} after writing. Fix: check the disk, and prepare it again")


def _card(archive: Archive, shards: list[_Shard], *, form: Form) -> dict[str, Any]:
    """Return the card of an archive and the shards that it was written from."""
    sums = sum(read_arrays(shard.path, ("sums",)).arrays["sums"] for shard in shards)
    count = len(archive) * archive.resolution**2
    return {
        "images": len(archive),
        "resolution": archive.resolution,
        "channels": archive.channels,
        "classes": archive.classes,
        "images_per_class": np.bincount(archive.labels()).tolist() if archive.classes else [],
        **form.statistics(np.asarray(sums), count=count),
        "sha256": sha256_of_file(archive.source),
    }


class _Shard(NamedTuple):
    """A file, the indices of its images, and a digest of what they are made of; empty where only the origin counts."""

    path: Path
    indices: range
    made_of: str


def _shard(dataset: Dataset, path: Path, indices: range) -> _Shard:
    stamps = [dataset.stamp(index) for index in indices] if isinstance(dataset, FromFiles) else []
    return _Shard(path, indices, sha256_of_text(canonical_json(stamps)) if stamps else "")


def _is_done(shard: _Shard) -> bool:
    """Whether a shard is whole, of the same files, and without unreadable images: those may be readable now."""
    try:
        about = read_arrays(shard.path).about
    except (ValueError, OSError):
        return False
    return about.get("made_of") == shard.made_of and not about["unreadable"]


def _clear_unless(folder: Path, *, origin: object, size: int) -> None:
    """Remove the shards in a folder that are of another origin, or of another size."""
    path, mark = folder / "origin.json", [_SHARD_FORMAT, origin, size]
    try:
        before = canonical_json(read_json(path))
    except (OSError, ValueError, RecursionError):
        before = ""
    if origin is None or before != canonical_json(mark):
        for old in folder.glob("*.npz"):
            old.unlink()
        write_json(path, mark)


def _read(shards: list[_Shard]) -> Iterator[tuple[bytes, int]]:
    """Yield the PNG file and the label of each readable image, in order."""
    for shard in shards:
        arrays, _ = read_arrays(shard.path, ("png", "sizes", "labels"))
        content, sizes = arrays["png"].tobytes(), arrays["sizes"]
        files = (content[end - size : end] for size, end in zip(sizes, np.cumsum(sizes), strict=True))
        yield from zip(files, arrays["labels"].tolist(), strict=True)


def _encode(dataset: Dataset, shards: list[_Shard], *, workers: int) -> None:
    """Make the shards that are missing."""
    missing = [shard for shard in shards if not _is_done(shard)]
    done = len(dataset) - sum(len(shard.indices) for shard in missing)
    if done:
        _logger.info("resumed: %s of %s images are done", f"{done:,}", f"{len(dataset):,}")
    with Bar(total=len(dataset), initial=done, unit="image", disable=None) as progress:
        for shard, _ in in_processes(_encode_shard, dataset, missing, workers=workers):
            progress.update(len(shard.indices))


def _encode_shard(dataset: Dataset, shard: _Shard) -> None:
    form = _form(dataset)
    expected = form.shape(dataset)
    images: list[np.ndarray] = []
    labels: list[int] = []
    unreadable: list[dict[str, str]] = []
    for index in shard.indices:
        try:
            pixels, label = dataset[index]
            images.append(form.checked(pixels, name=f"image {index}", expected=expected))
            labels.append(label)
        except UnreadableImage as error:
            unreadable.append({"name": error.name, "reason": error.reason})
    files = [form.encoded(image) for image in images]
    arrays: dict[str, np.ndarray] = {
        "png": np.frombuffer(b"".join(files), np.uint8),
        "sizes": np.array([len(content) for content in files], np.int64),
        "labels": np.array(labels, np.int64),
        "sums": form.sums(images, channels=dataset.channels),
    }
    write_arrays(shard.path, arrays, about={"unreadable": unreadable, "made_of": shard.made_of})


def _unreadable(dataset: Dataset, shards: list[_Shard]) -> list[dict[str, str]]:
    """Return and log the unreadable images; refuse more than the dataset's share, and a class of nothing else."""
    limit, found, readable = dataset.unreadable_share, list[dict[str, str]](), set[int]()
    for shard in shards:
        arrays, about = read_arrays(shard.path, ("labels",))
        found += about["unreadable"]
        readable |= set(arrays["labels"].tolist())
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
    if isinstance(dataset, FromFiles):
        empty = [name for label, name in enumerate(dataset.class_names) if label not in readable]
        if empty := sorted([*empty, *dataset.refused_classes]):
            problem = f"{dataset.source}: got no readable image in the class folders {', '.join(empty[:8])}"
            raise ValueError(f"{problem}, expected at least one in each. Fix: repair one, or remove the folders")
    return found


def _log_classes(card: Mapping[str, Any]) -> None:
    """Log the number of images, and that of each class."""
    counts = card["images_per_class"]
    names = card["class_names"] or range(len(counts))
    each = [f"{name} {count:,}" for name, count in zip(names, counts, strict=False)]
    more = f", ... (all {len(each):,} in the card)" if each[_LISTED_CLASSES:] else ""
    classes = f" in {len(each):,} classes: {', '.join(each[:_LISTED_CLASSES])}{more}" if each else ", unlabelled"
    _logger.info("%s images%s", f"{card['images']:,}", classes)


def _write(path: Path, shards: list[_Shard], *, ending: str, labelled: bool, **about: object) -> None:
    """Write encoded images and their labels as an archive; `about` are further keys of `dataset.json`."""
    labels: list[tuple[str, int]] = []
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for content, label in _read(shards):
            number = f"{len(labels):08d}"
            name = f"{number[:5]}/img{number}{ending}"
            archive.writestr(_member(name), content)
            labels.append((name, label))
        if not labels:
            raise ValueError(f"{path}: got no images, expected at least one")
        archive.writestr(_member("dataset.json"), json.dumps({"labels": labels if labelled else None, **about}))


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member's header without the time, the machine or the user."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3  # Unix, whatever the machine
    member.external_attr = 0o644 << 16
    return member
