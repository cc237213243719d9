"""Writing EDM's dataset archives (stored PNG files and a `dataset.json`), each with a card that says what is in it."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from onestep.data import Dataset
from onestep.data.image_zip import ImageZip
from onestep.files import replacing, sha256_of_file, write_json


def prepare(dataset: Dataset, *, target: Path | str) -> dict[str, Any]:
    """Write a dataset as the one file that all later stages read and, beside it, its card: `{target stem}.json`.

    The card is taken from the archive as read back, so that it also proves that the archive can be read.

    Args:
        dataset: The pictures.
        target: The archive, `.zip`.

    Returns:
        The card, see `describe`.

    Raises:
        ValueError: The pictures do not fit the format.
    """
    target = Path(target)
    write_archive(target, _pictures(dataset))
    card = describe(ImageZip(source=target))
    write_json(target.with_suffix(".json"), card)
    return card


def describe(archive: ImageZip) -> dict[str, Any]:
    """Return the card of an archive.

    Returns:
        `images`, `resolution`, `channels`, `classes`; `images_per_class`, a list by class (empty if unlabelled);
        `pixel_mean` and `pixel_std`, a number in 0..255 for each channel; `sha256` of the archive.
    """
    sums = np.zeros((2, archive.channels), dtype=np.uint64)
    per_class = np.zeros(archive.classes, dtype=np.int64)
    for index in range(len(archive)):
        pixels, label = archive[index]
        sums += _sums(pixels)
        if archive.classes:
            per_class[label] += 1
    count = len(archive) * archive.resolution**2
    moments = [_mean_and_std(int(total), int(squares), count) for total, squares in sums.T]
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
    labels: list[tuple[str, int | None]] = []
    expected: tuple[int, ...] | None = None
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for index, (picture, label) in enumerate(pictures):
            name = f"{index:08d}"
            name = f"{name[:5]}/img{name}.png"
            pixels = np.asarray(picture)
            _check(pixels, name=name, expected=expected)
            expected = pixels.shape
            archive.writestr(_member(name), _png(pixels))
            labels.append((name, None if label is None else int(label)))
        if not labels:
            raise ValueError(f"{path}: there are no pictures to write")
        archive.writestr(_member("dataset.json"), _labels_json(labels))


def _pictures(dataset: Dataset) -> Iterator[tuple[Tensor, int | None]]:
    """Return all pictures with their labels, or with none if the dataset is unlabelled."""
    for index in range(len(dataset)):
        pixels, label = dataset[index]
        yield pixels, label if dataset.classes else None


def _sums(pixels: Tensor) -> np.ndarray:
    """Return the sum and the sum of squares of each channel, exact integers [2, C]."""
    numbers = pixels.numpy().astype(np.uint64)
    return np.stack([numbers.sum(axis=(1, 2)), (numbers**2).sum(axis=(1, 2))])


def _mean_and_std(total: int, squares: int, count: int) -> tuple[float, float]:
    """Return both from exact sums, so that they do not depend on the order of the pictures."""
    return total / count, math.sqrt(count * squares - total**2) / count


def _check(pixels: np.ndarray, *, name: str, expected: tuple[int, ...] | None) -> None:
    """Refuse a picture that EDM's reader would refuse, or that differs in shape from those before it."""
    found = f"{name}: found {pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"{found}, expected uint8 [C, H, W] with 1 or 3 channels; convert the pictures first")
    _, height, width = pixels.shape
    if height != width or height & (height - 1) or not height:
        raise ValueError(f"{found}, expected a square whose side is a power of two; crop or scale the pictures first")
    if expected is not None and pixels.shape != expected:
        raise ValueError(f"{found}, but the pictures before it are {list(expected)}; bring all to one shape first")


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member's header without the time, the machine or the user."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3  # Unix, whatever the machine
    member.external_attr = 0o644 << 16
    return member


def _png(pixels: np.ndarray) -> bytes:
    """Encode one picture, uint8 [C, H, W], as an uncompressed PNG."""
    grey_or_rgb = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grey_or_rgb)).save(content, format="png", compress_level=0, optimize=False)
    return content.getvalue()


def _labels_json(labels: list[tuple[str, int | None]]) -> str:
    """Spell the labels as EDM does: one missing label makes the whole dataset unlabelled."""
    complete = all(label is not None for _, label in labels)
    return json.dumps({"labels": labels if complete else None})
