"""A finished run's files, placed where the next stages look for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from onestep.files import read_json, replacing, write_json


def publish(folder: Path, target: Path) -> None:
    """Place the finished run's files under `target`, each whole; hard links where the file system allows."""
    snapshots = sorted((folder / "snapshots").glob("*.safetensors"))
    # Those of an earlier spec with other counts would pass for this one's.
    for stale in {path.name for path in (target / "snapshots").glob("*")} - {path.name for path in snapshots}:
        (target / "snapshots" / stale).unlink()
    for snapshot in snapshots:
        _link(snapshot, target / "snapshots" / snapshot.name)
    _link(folder / "log.jsonl", target / "log.jsonl")
    # Last, because it says that the rest is there.
    write_json(target / "summary.json", read_json(folder / "done.json"))


def is_published(folder: Path, target: Path) -> bool:
    """Return whether the files under `target` are those of the finished run: by name, and by its summary."""
    names = ["log.jsonl", *(f"snapshots/{path.name}" for path in (folder / "snapshots").glob("*.safetensors"))]
    summary = target / "summary.json"
    whole = summary.exists() and all((target / name).exists() for name in names)
    return whole and read_json(summary) == read_json(folder / "done.json")


def _link(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        # A link keeps the old date; to the workflow this file was made now.
        os.utime(temporary)
