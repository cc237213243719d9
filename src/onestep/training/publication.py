"""Publication of a finished run below results/."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from onestep.files import read_json, replacing, write_json


def publish(folder: Path, target: Path) -> None:
    """Publish the finished run's files under `target`, each atomically; by hard links where possible."""
    snapshots = sorted((folder / "snapshots").glob("*.safetensors"))
    # Snapshots of an earlier run hash at other counts are not this run's.
    for stale in {path.name for path in (target / "snapshots").glob("*")} - {path.name for path in snapshots}:
        (target / "snapshots" / stale).unlink()
    for snapshot in snapshots:
        _link(snapshot, target / "snapshots" / snapshot.name)
    _link(folder / "log.jsonl", target / "log.jsonl")
    # Last, because it marks the others as complete.
    write_json(target / "summary.json", read_json(folder / "done.json"))


def is_published(folder: Path, target: Path) -> bool:
    """Return whether `target` has the files of the finished run, compared by name and summary."""
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
        # A link keeps the old time; Snakemake needs that of the publication.
        os.utime(temporary)
