"""Giving a file of this machine a second name: small ones are copied, large ones linked, because disks are short."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from onestep.files import canonical_json, sha256_of_text

LINKED_FROM = 64 * 2**20
"""Bytes from which on a file is linked and not copied."""


def copy_or_link(source: Path, target: Path, *, linked_from: int = LINKED_FROM) -> None:
    """Make `target`, which does not exist, a copy of `source`, or a link to it (hard; on another disk, symbolic)."""
    if source.stat().st_size < linked_from:
        shutil.copyfile(source, target)
        return
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:
        os.symlink(real, target)


def describe_folder(folder: Path) -> dict[str, Any]:
    """Return what a folder is: its place, and a digest of the names and sizes of all files below it.

    The files' content is not read: for a million pictures that would take hours.

    Returns:
        `folder`, its absolute path; `files`, their number; `bytes`, their sum; `listing_sha256`, the digest of the JSON
        list of [name relative to the folder, bytes], sorted by name.

    Raises:
        ValueError: There is no file below it.
    """
    sizes = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in _files(folder))
    if not sizes:
        raise ValueError(f"{folder}: found an empty folder, expected files in it; bring them there")
    return {
        "folder": str(folder.resolve()),
        "files": len(sizes),
        "bytes": sum(size for _, size in sizes),
        "listing_sha256": sha256_of_text(canonical_json(sizes)),
    }


def _files(folder: Path) -> list[Path]:
    return [Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names]


def folder_text(description: dict[str, Any]) -> str:
    """Return the content of a `.folder` file."""
    return json.dumps(description, indent=2) + "\n"
