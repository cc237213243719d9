"""The member `dataset.json` of a dataset archive: the class of each image."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from onestep.data._sources import Entry, ZipSource
from onestep.data._zip_members import LABELS, PlainMembers
from onestep.folders import is_hidden

_MOST_CLASSES = 100_000
_LARGEST_LABELS = 2**20, 2**10  # bytes of dataset.json: these, and for each image


class Labels(NamedTuple):
    """Classes in the order of the images, None of an unlabelled archive; and the whole document."""

    labels: list[int] | None
    document: Mapping[str, Any]


def read_labels(source: Path, images: Any, *, plain: PlainMembers | None, archive: ZipSource) -> Labels:
    """Read the labels of the members `images`, their names, as bytes [N] of a plain archive; ValueError: damaged."""
    if plain is not None and not plain.has_labels:
        return Labels(None, {})
    members = [LABELS] if plain is not None else archive.names()
    if LABELS not in members:
        if elsewhere := [name for name in members if posixpath.basename(name) == LABELS and not is_hidden(name)]:
            found = f"{source}: got the labels {elsewhere[0]}, expected {LABELS} outside of all folders"
            raise ValueError(f"{found}. Fix: build the archive again, from within the folder")
        return Labels(None, {})
    least, each = _LARGEST_LABELS
    most = least + each * len(images)
    try:
        content = None if plain is None else plain.labels(most=most)
        if content is None:
            content = archive.read(Entry(LABELS, LABELS), most=most)
        document = json.loads(content)
        labels = document["labels"]
        if labels is None:
            return Labels(None, document)
        by_name = dict(labels)
        if len(by_name) < len(labels):
            raise ValueError("it has two labels of one member")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        expected = "{'labels': [[member, class], ...]}"
        raise ValueError(f"{source}: dataset.json is not {expected} ({error!r}); build it again") from error
    names = images if plain is None else images.astype(str).tolist()
    for name in names:
        if type(label := by_name.get(name)) is not int or not 0 <= label < _MOST_CLASSES:
            found = f"{source}: dataset.json gives {name} the label {str(label)[:40]}"
            fix = 'give every image a class, or none ("labels": null)'
            raise ValueError(f"{found}, expected a class 0, 1, ..., {_MOST_CLASSES - 1:,}; {fix}")
    return Labels([by_name[name] for name in names], document)
