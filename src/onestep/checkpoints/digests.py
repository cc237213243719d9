"""Digests of files that a later stage trusts: recorded beside the file when it is written, compared when it is read.

The record of a snapshot is the summary.json or snapshots.json of its run, that of a log the summary.json, that of a
teacher its card, that of a selection or a table of class embeddings the JSON beside it, that of a dataset its card,
that of an input the `.sha256` beside it. A file without a record, or with one of an earlier version, is read as it is.
The files themselves keep their bytes. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from onestep.files import read_json, regular_file, sha256_of_file
from onestep.inputs import recorded_digest
from onestep.run_record import LOG, RECORD, SUMMARY

WEIGHTS = "weights_sha256"
"""Key of a card or record that holds the digest of the weights beside it."""


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError if it is none, or if it is `files.sealed` and has changed."""
    record: dict[str, Any] = read_json(path, dict)
    return record


def checked(path: Path | str) -> Path:
    """Return the path of a file that has its recorded digest, or no record; otherwise ValueError. Reads it once."""
    path = regular_file(path)
    if _recorded(path)[1] is not None:
        checked_digest(path)
    return path


def checked_digest(path: Path) -> str:
    """Return the SHA-256 of a file; ValueError as in `checked`."""
    regular_file(path)
    record, expected, fix = _recorded(path)
    found = sha256_of_file(path)
    if expected is not None and found != expected:
        raise ValueError(f"{path}: got other content than {record} records (its SHA-256 differs). Fix: {fix}")
    return found


def known_digest(path: Path) -> str:
    """Return the recorded SHA-256 of a file without a comparison; without a record, that of its content."""
    regular_file(path)
    return _recorded(path)[1] or sha256_of_file(path)


def _recorded(path: Path) -> tuple[Path | None, str | None, str]:
    """Return the path of a file's record and the recorded SHA-256, each None if absent, and the fix for a mismatch."""
    place = path.absolute()
    again = "delete it and make it again"
    if path.name == LOG and (summary := path.with_name(SUMMARY)).exists():
        files = read_record(summary).get("files")
        return summary, files.get(LOG) if isinstance(files, dict) else None, "train the run again"
    if place.parent.name == "snapshots" and (known := _recorded_by_run(place)) is not None:
        return known
    if (placed := recorded_digest(path)) is not None:
        return *placed, "delete both, and fetch again"
    if path.suffix == ".zip" and (card := path.with_suffix(".json")).exists():
        digest = read_record(card).get("sha256")
        return card, digest if isinstance(digest, str) else None, "delete both, and prepare the dataset again"
    for suffix in (".json", ".yaml"):
        record = path.with_suffix(suffix)
        if path.suffix != suffix and record.exists():
            content = read_record(record) if suffix == ".json" else _card(record)
            if content.get("source") == path.name:
                continue  # the card of the teacher that was converted from this file
            if isinstance(digest := content.get(WEIGHTS), str):
                return record, digest, again
    return None, None, again


def _recorded_by_run(snapshot: Path) -> tuple[Path, str | None, str] | None:
    """Return the same of a snapshot; None if its folder has no record."""
    found = None
    # Of a published run and its work folder at the end, and of both while it trains.
    for name in (SUMMARY, "done.json", RECORD):
        record = snapshot.parent.parent / name
        if record.exists():
            files = read_record(record).get("files")
            digest = files.get(f"snapshots/{snapshot.name}") if isinstance(files, dict) else None
            if found is None or digest is not None:
                found = record, digest, "train the run again: the same command publishes it or repeats it"
            if digest is not None:
                break
    return found


def _card(path: Path) -> Mapping[str, Any]:
    regular_file(path)
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a YAML file ({_words(error)}); delete it and make it again") from error
    return card if isinstance(card, dict) else {}


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
