"""Digests of files that a later stage trusts: recorded beside the file when it is written, compared when it is read.

The record of a snapshot is the summary.json of its run, that of a teacher its card, that of a selection or a table of
class embeddings the JSON beside it. A file without a record, or with one of an earlier version, is read as it is. The
files themselves keep their bytes. Imports no torch.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from onestep.files import canonical_json, read_json, sha256_of_file, sha256_of_text

WEIGHTS = "weights_sha256"
"""Key of a card or record that holds the digest of the weights beside it."""

_SEAL = "content_sha256"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the digest of the rest of it as its last key, `content_sha256`."""
    return {**record, _SEAL: sha256_of_text(canonical_json(dict(record)))}


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError if it is none, or if it is `sealed` and has changed."""
    expect_file(path)
    try:
        record = read_json(path)
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({_words(error)})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: got {type(record).__name__}, expected a JSON object")
    content = {key: value for key, value in record.items() if key != _SEAL}
    # NaN is no JSON, and without a seal in any record of this package.
    if _SEAL in record and (_is_odd(content) or record[_SEAL] != sealed(content)[_SEAL]):
        raise ValueError(f"{path}: got other content than was written (its SHA-256 differs)")
    return record


def _is_odd(content: Mapping[str, Any]) -> bool:
    try:
        return not canonical_json(dict(content))
    except (ValueError, RecursionError):
        return True


def expect_file(path: Path | str) -> None:
    """Raise unless a path is a file: reading a pipe or a device has no end; OSError where there is nothing."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ValueError(f"{path}: got {found}, expected a file")


def checked(path: Path | str) -> Path:
    """Return the path of a file that has its recorded digest, or no record; otherwise ValueError. Reads it once."""
    path = Path(path)
    expect_file(path)
    if _recorded(path)[1] is not None:
        checked_digest(path)
    return path


def checked_digest(path: Path) -> str:
    """Return the SHA-256 of a file; ValueError as in `checked`."""
    expect_file(path)
    record, expected, fix = _recorded(path)
    found = sha256_of_file(path)
    if expected is not None and found != expected:
        raise ValueError(f"{path}: got other content than {record} records (its SHA-256 differs). Fix: {fix}")
    return found


def _recorded(path: Path) -> tuple[Path | None, str | None, str]:
    """Return the record of a file, the digest in it, and how to make the file again; None where there is none."""
    place = path.absolute()
    again = "delete it and make it again"
    if place.parent.name == "snapshots":
        # summary.json of a published run, done.json in its work folder.
        for name in ("summary.json", "done.json"):
            summary = path.absolute().parent.parent / name
            if summary.exists():
                files = read_record(summary).get("files")
                digest = files.get(f"snapshots/{path.name}") if isinstance(files, dict) else None
                return summary, digest, "train the run again: the same command publishes it or repeats it"
    for suffix in (".json", ".yaml"):
        record = path.with_suffix(suffix)
        if path.suffix != suffix and record.exists():
            content = read_record(record) if suffix == ".json" else _card(record)
            if isinstance(digest := content.get(WEIGHTS), str):
                return record, digest, again
    return None, None, again


def _card(path: Path) -> Mapping[str, Any]:
    expect_file(path)
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a YAML file ({_words(error)}); delete it and make it again") from error
    return card if isinstance(card, dict) else {}


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
