"""The record in a run's folder: its identity and the digests of its snapshots, in `snapshots.json`; earlier runs.

A run has two folders: the work folder `state/{run}/{spec}/` and the published one, `results/runs/{run}/`, in which the
record is written before the snapshot that it lists. Where the science of a run changes, the files of the published
run move to `results/runs/{run}/earlier/{spec}/`. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onestep.files import flush, read_json, replacing, sealed, write_json, write_text

RECORD, SUMMARY, LOG, EARLIER = "snapshots.json", "summary.json", "log.jsonl", "earlier"
_SHAPE = {"run": str, "spec": str, "config": dict, "files": {str: str}}
_UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The run of a folder.

    Attributes:
        spec: Run hash; `unknown` for a published run of an earlier version without a summary.
        config: Its run.yaml; empty if it is not known.
        files: SHA-256 of each snapshot by its name in the folder, such as `snapshots/40000.safetensors`.
    """

    run: str
    spec: str
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the record into a folder, atomically."""
        write_json(folder / RECORD, sealed(asdict(self)))


def read_run_record(folder: Path) -> RunRecord | None:
    """Return the record of a run's folder; None if there is no run.

    For a published run of an earlier version it is that of summary.json and, unless it is newer, of run.yaml.

    Raises:
        ValueError: A file of it is damaged.
    """
    if (folder / RECORD).exists():
        found = read_json(folder / RECORD, _SHAPE)
        return RunRecord(**{key: found[key] for key in _SHAPE})
    summary = folder / SUMMARY
    if summary.exists():
        facts = read_json(summary, {"run": str, "spec": str, "files?": {str: str}})
        files = {name: digest for name, digest in facts.get("files", {}).items() if name != LOG}
        return RunRecord(run=facts["run"], spec=facts["spec"], config=_former_config(folder), files=files)
    if any((folder / "snapshots").glob("*.safetensors")):
        return RunRecord(run=folder.name, spec=_UNKNOWN)
    return None


def recorded_config(folder: Path) -> Mapping[str, Any] | None:
    """Return the run.yaml of the run in a folder as it was recorded; None if it is not known, or is damaged."""
    with contextlib.suppress(ValueError):
        record = read_run_record(folder)
        return None if record is None else record.config or None
    return None


def _former_config(folder: Path) -> dict[str, Any]:
    config, summary = folder / "run.yaml", folder / SUMMARY
    # An edited config whose training has not begun has a newer one.
    if not config.exists() or config.stat().st_mtime > summary.stat().st_mtime:
        return {}
    found = yaml.safe_load(config.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def images_seen_of(folder: Path, *, spec: str | None = None) -> int:
    """Return the images of a published run that is finished, 0 if it is not; `spec` is that of its record."""
    path = folder / SUMMARY
    if not path.exists():
        return 0
    found = read_json(path, {"spec": str, "images_seen": int})
    return int(found["images_seen"]) if spec in (None, found["spec"]) else 0


def newest_state(folder: Path) -> int | None:
    """Return the images seen of the newest training state in a work folder by its name; None without one."""
    found = [path.name.removeprefix("state-") for path in folder.glob("state-*") if path.is_dir()]
    return max((int(each) for each in found if each.isdecimal()), default=None)


def set_aside(folder: Path, record: RunRecord, *, work: Path | None = None) -> Path:
    """Move a published run to `earlier/{spec}/` and return that folder; a killed call is completed by the next one.

    Files that are gone here are taken from its work folder `work`.
    """
    place = folder / EARLIER / record.spec
    for path in _files(folder):
        _move(path, place / path.relative_to(folder))
    if work is not None:
        for name in (*record.files, LOG):
            if not (place / name).exists() and (work / name).is_file():
                link(work / name, place / name)
        if (work / "done.json").is_file() and not (place / SUMMARY).exists():
            shutil.copyfile(work / "done.json", place / SUMMARY)
    if record.config:
        write_text(place / "run.yaml", yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True))
    record.write(place)
    (folder / RECORD).unlink(missing_ok=True)  # last, because it names the run that moves
    return place


def bring_back(folder: Path, *, spec: str) -> None:
    """Move a run in `earlier/{spec}/` back, if it is there; nothing else may be published in the folder."""
    place = folder / EARLIER / spec
    if not place.is_dir():
        return
    if (place / RECORD).exists() and not (folder / RECORD).exists():
        _move(place / RECORD, folder / RECORD)  # first, because it names the run that moves
    for path in _files(place):
        _move(path, folder / path.relative_to(place))
    shutil.rmtree(place, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    """Return the files of a run in its folder, without its configuration and its record."""
    kept = ("run.yaml", RECORD, EARLIER)
    found = [path for path in sorted(folder.rglob("*")) if path.relative_to(folder).parts[0] not in kept]
    return [path for path in found if not path.is_dir() or path.is_symlink()]


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    flush(target.parent)


def link(source: Path, target: Path, *, copy: bool = False) -> None:
    """Put a file at another place, atomically: by a hard link where possible, unless it is to be a `copy`."""
    with replacing(target) as temporary:
        try:
            if copy:
                raise OSError
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        # A link keeps the old time; Snakemake needs that of the publication.
        os.utime(temporary)
