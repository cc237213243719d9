"""Examine a dataset: how many images, of which sizes and colours, in which classes."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onestep.data._pixels import decode
from onestep.data._sources import Entry, Source, ZipSource, open_source, pictures
from onestep.data.image_zip import ImageZip
from onestep.progress import Bar

Labels = Literal["auto", "folders", "none"]

_EXAMINED = 2_000  # images that are decoded, evenly spread over a larger dataset
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_TRAINING = ("train", "training")
_SHARD_DIGITS = 5  # folders 00000, 00001, ... hold parts of a dataset (EDM, FFHQ), not classes
_MOST_UNREADABLE = 0.1


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is in a dataset."""

    path: Path
    reader: Literal["images", "image_zip"]  # the choice of data/ that reads it
    images: int
    sizes: tuple[tuple[int, int], ...]  # (height, width) of the images that were decoded, the smallest first
    channels: Literal[1, 3]
    classes: tuple[tuple[str, int], ...] = ()  # name and number of images
    root: str = ""  # the folder in it that counts
    unreadable: float = 0.0  # share of the decoded images
    notes: tuple[str, ...] = ()  # what was decided about it, one line each

    @property
    def is_square(self) -> bool:
        """Whether all images that were decoded are."""
        return all(height == width for height, width in self.sizes)

    @property
    def side(self) -> int:
        """Median of the shorter sides in pixels."""
        sides = sorted(min(size) for size in self.sizes)
        return sides[len(sides) // 2]


def examine_dataset(path: Path, *, labels: Labels = "auto") -> Found:
    """Examine a folder, a zip or a tar of images, or an archive in EDM's format.

    Raises:
        ValueError: There is nothing, too much cannot be read, or `labels: folders` does not fit.
    """
    source = open_source(path)
    note = ""
    if labels != "folders" and isinstance(source, ZipSource) and "dataset.json" in source.names():
        try:
            return _archive(path, labels=labels)
        except ValueError as error:
            note = f"its dataset.json is not used, so its labels are not either: {error}"
    entries = [each for each in pictures(source).pictures if each.refused is None]
    root = _root([each.name for each in entries])
    listing = pictures(source, root)
    usable = [each for each in listing.pictures if each.refused is None]
    if not usable:
        refused = next((f"; {each.name}: {each.refused}" for each in listing.pictures), "")
        raise ValueError(f"{path}: got no images{refused}, expected PNG, JPEG, ... files. Fix: correct the path")
    classes, why = _classes([each.name for each in usable], labels=labels, path=path)
    shapes, wrong = _decoded(source, usable)
    wrong += [f"{each.name}: {each.refused}" for each in listing.pictures if each.refused is not None]
    share = len(wrong) / (len(shapes) + len(wrong))
    if share > _MOST_UNREADABLE or not shapes:
        found = f"{path}: got {len(wrong)} of {len(shapes) + len(wrong)} images that cannot be read: {wrong[0]}"
        raise ValueError(f"{found}, expected at most {_MOST_UNREADABLE:.0%}. Fix: repair or remove them")
    notes = [note, why, f"images below {root}/ only: the other folders are splits" if root else ""]
    notes += [f"left out, as it cannot be read: {each}" for each in wrong[:3]]
    notes += [f"and {len(wrong) - 3} more that cannot be read"] if len(wrong) > 3 else []
    colours = {len(shape) for shape in shapes}
    if colours == {2, 3}:
        notes.append("grey images among colour ones: all get three channels")
    return Found(
        path=path,
        reader="images",
        images=len(usable),
        sizes=tuple(sorted({(shape[0], shape[1]) for shape in shapes}, key=min)),
        channels=1 if colours == {2} else 3,
        classes=classes,
        root=root,
        unreadable=share,
        notes=tuple(filter(None, notes)),
    )


def _archive(path: Path, *, labels: Labels) -> Found:
    """Return what is in an archive of EDM's format; ValueError where it is none."""
    archive = ImageZip(source=path)
    counts = Counter(archive.labels().tolist()) if archive.classes > 1 and labels != "none" else {}
    return Found(
        path=path,
        reader="image_zip",
        images=len(archive),
        sizes=((archive.resolution, archive.resolution),),
        channels=1 if archive.channels == 1 else 3,
        classes=tuple((str(label), counts.get(label, 0)) for label in range(archive.classes)) if counts else (),
        notes=("an archive in EDM's format",),
    )


def _root(names: Sequence[str]) -> str:
    """Return the folder of the training images where the topmost folders are splits of a dataset; else nothing."""
    prefix = os.path.commonprefix([name.split("/")[:-1] for name in names])
    depth = len(prefix)
    parts = {name.split("/")[depth] for name in names if name.count("/") > depth}
    chosen = next((each for each in sorted(parts) if each.lower() in _TRAINING), None)
    is_split = len(parts) > 1 and all(each.lower() in _SPLITS for each in parts)
    return "/".join([*prefix, chosen]) if chosen is not None and is_split else ""


def _classes(names: Sequence[str], *, labels: Labels, path: Path) -> tuple[tuple[tuple[str, int], ...], str]:
    """Return name and number of images of each class folder, and a note; no classes if the folders are not classes."""
    if labels == "none":
        return (), ""
    prefix = os.path.commonprefix([name.split("/")[:-1] for name in names])
    tops = [name.split("/")[len(prefix)] if name.count("/") > len(prefix) else "" for name in names]
    counts = Counter(tops)
    loose = counts.pop("", 0)
    found = tuple(sorted(counts.items()))
    if labels == "folders" and (loose or len(found) < 2):
        got = f"{loose} images outside of class folders" if found else "no class folders"
        raise ValueError(f"{path}: got {got}, expected every image in one of them. Fix: --labels none")
    if labels == "auto" and found and all(len(each) >= _SHARD_DIGITS and each.isdecimal() for each in counts):
        return (), f"folders such as {found[0][0]} are parts, not classes (else: --labels folders)"
    if loose and found:
        return (), f"{loose} images are in none of the {len(found)} folders, so these are no classes"
    return (found, "") if len(found) > 1 else ((), "")


def _decoded(source: Source, entries: Sequence[Entry]) -> tuple[list[tuple[int, ...]], list[str]]:
    """Return the shapes [H, W] or [H, W, 3] of the images that can be decoded, and a line for each other one."""
    step = max(1, -(-len(entries) // _EXAMINED))
    shapes: list[tuple[int, ...]] = []
    wrong: list[str] = []
    with Bar(total=len(entries[::step]), unit="image", desc="looking", disable=None) as progress:
        for entry in entries[::step]:
            try:
                shapes.append(decode(source.read(entry)).shape)
            except ValueError as error:
                wrong.append(f"{posixpath.basename(entry.name)}: {error}")
            progress.update()
    return shapes, wrong
