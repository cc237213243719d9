"""Publication of a run: snapshots as soon as they are written, the log and the facts of a finished run at its end.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onestep.checkpoints.digests import read_record
from onestep.files import regular_file, sha256_of_file, write_json
from onestep.run_record import (
    LOG,
    SUMMARY,
    RunRecord,
    bring_back,
    link,
    newest_state,
    read_run_record,
    set_aside,
)

_logger = logging.getLogger(__name__)

DONE = "done.json"
"""The facts of a finished run in its work folder, with the digests of its files; summary.json is its copy."""

FAILED = "failed.json"
"""The reason why the last start of a run failed."""

_SEEN = ("watch", "tensorboard")  # folders of what was made while the run trained


def spec_of(folder: Path) -> str:
    """Return the run hash of a work folder, as its files state it: of an earlier version the former one."""
    return folder.resolve().name


def specs_of(folder: Path) -> set[str]:
    """Return the run hashes of a work folder; one of an earlier version has two, and a link by its new name."""
    return {folder.name, spec_of(folder)}


def begin(folder: Path, *, config: Mapping[str, Any]) -> RunRecord:
    """Write the record of a work folder, with the digests of its snapshots so far, and return it."""
    with contextlib.suppress(ValueError):  # a damaged record is replaced
        found = read_run_record(folder)
        files = {} if found is None else found.files
        record = RunRecord(run=config["run"], spec=spec_of(folder), config=config, files=files)
        if record != found:
            record.write(folder)
        return record
    record = RunRecord(run=config["run"], spec=spec_of(folder), config=config)
    record.write(folder)
    return record


def claim(folder: Path, target: Path, *, config: Mapping[str, Any]) -> None:
    """Make `target` the published folder of the run in `folder`, before it trains.

    A published run of another science moves to `target/earlier/{spec}/`; an earlier one of this science comes back. Of
    the same science, all published files stay.
    """
    try:
        found = read_run_record(target)
    except ValueError as error:
        _logger.warning("%s", error)
        found = RunRecord(run=config["run"], spec="unknown")
    if found is not None and found.spec not in specs_of(folder):
        work = folder.parent / found.spec
        place = set_aside(target, found, work=work if work.is_dir() else None)
        _logger.info("%s: the published run of another configuration is now in %s", config["run"], place)
        found = None
    for spec in specs_of(folder):
        bring_back(target, spec=spec)
    with contextlib.suppress(ValueError):
        found = read_run_record(target) or found
    record = RunRecord(run=config["run"], spec=spec_of(folder), config=config, files=found.files if found else {})
    if record != found:
        record.write(target)


def publish_snapshots(folder: Path, target: Path) -> None:
    """Publish the snapshots that a work folder records, unless they are published, or `target` is of another run."""
    with contextlib.suppress(ValueError):
        own, there = read_run_record(folder), read_run_record(target)
        if own is None or there is None or there.spec not in specs_of(folder):
            return
        # Those that are gone from the work folder stay as they were published.
        fresh = {n: d for n, d in own.files.items() if (folder / n).is_file()}
        needed = [n for n, d in fresh.items() if there.files.get(n) != d or not (target / n).is_file()]
        if not needed:
            return
        _withdraw_summary(target, fresh)
        replace(there, files={**there.files, **fresh}).write(target)
        for name in needed:
            _link_unless_equal(folder / name, target / name, digest=fresh[name])


def _withdraw_summary(target: Path, files: Mapping[str, str]) -> None:
    """Remove a summary that lists other bytes than those which are about to be published."""
    with contextlib.suppress(ValueError, OSError):
        listed = read_record(target / SUMMARY).get("files", {})
        if any(listed.get(name, digest) != digest for name, digest in files.items()):
            (target / SUMMARY).unlink()


def _link_unless_equal(source: Path, target: Path, *, digest: str | None) -> None:
    """Publish a snapshot; an equal file keeps its time, so that nothing that was made of it is made again."""
    with contextlib.suppress(OSError):
        if os.path.samefile(source, target):
            return
    if digest is None or _flaw_of_file(target, digest) is not None:
        link(source, target)


def publish(folder: Path, target: Path, *, whole: bool = False) -> None:
    """Publish the finished run's files under `target`, each atomically; by hard links where possible.

    `withdrawn` compares them with their digests first, unless it has just done so: `whole`. Other snapshots stay.

    Raises:
        ValueError: The run is not finished as done.json states; done.json is withdrawn.
    """
    if not whole and (flaw := withdrawn(folder, published=target)) is not None:
        raise ValueError(f"{folder}: {flaw}. Fix: run the same command again, which trains the run again")
    done = read_record(folder / DONE)
    summary = target / SUMMARY
    if summary.exists() and not is_published(folder, target):
        _withdraw_summary(target, done.get("files", {}))  # its digests are those of other files
    files = done.get("files", {})
    own, there = read_run_record(folder), read_run_record(target)
    if there is not None and own is not None:
        mine = {name: digest for name, digest in files.items() if name != LOG}
        replace(own, files={**there.files, **mine}).write(target)
    for name in _names(folder, done):
        if name == LOG:
            # Not a link: Snakemake overwrites a log in place where a job fails.
            link(folder / name, target / name, copy=True)
        else:
            _link_unless_equal(folder / name, target / name, digest=files.get(name))
    show(folder, target)
    # Last, because it marks the others as complete.
    write_json(summary, done)


def show(folder: Path, target: Path) -> None:
    """Show grids, numbers and event files of a work folder in `target`, unless that is of another run.

    Also while the run trains. What was made of a published snapshot stays as long as the snapshot.
    """
    with contextlib.suppress(ValueError):
        there = read_run_record(target)
        if there is None or there.spec not in specs_of(folder):
            return
        for name in _SEEN:
            files = {path.name: path for path in (folder / name).glob("[!.]*")}
            for path in (target / name).glob("*"):
                kept = name == "watch" and (target / f"snapshots/{path.name.partition('.')[0]}.safetensors").exists()
                if path.name not in files and not kept:
                    path.unlink()
            for path in files.values():
                _show(path, target / name / path.name)


def _show(path: Path, shown: Path) -> None:
    if shown.exists() and shown.samefile(path):
        return
    shown.parent.mkdir(parents=True, exist_ok=True)
    shown.unlink(missing_ok=True)
    try:
        os.link(path, shown)
    except OSError:  # another file system; the file may still grow
        shown.symlink_to(path.resolve())


def is_published(folder: Path, target: Path) -> bool:
    """Return whether `target` has the files of the finished run, compared by name and summary."""
    with contextlib.suppress(ValueError, OSError):
        done = read_record(folder / DONE)
        there = all((target / name).exists() for name in _names(folder, done))
        return there and read_record(target / SUMMARY) == done
    return False


def images_done(folder: Path) -> int | None:
    """Return the images of the finished run in a work folder; None if it is not finished or done.json is damaged."""
    with contextlib.suppress(ValueError, OSError):
        done = read_record(folder / DONE)
        seen = done.get("images_seen")
        return seen if isinstance(seen, int) and done.get("spec") in specs_of(folder) else None
    return None


def check_length(folder: Path, *, images: int) -> None:
    """Raise ValueError if the finished run in a work folder has passed the length `images` without a snapshot there."""
    seen = images_done(folder)
    if seen is None or seen <= images or (folder / f"snapshots/{images}.safetensors").exists():
        return
    counts = [path.stem for path in (folder / "snapshots").glob("*.safetensors") if path.stem.isdecimal()]
    made = ", ".join(sorted(counts, key=int))
    found = (
        f"images: got {images:,}, expected more than the {seen:,} that it has seen, or one of its snapshots ({made})"
    )
    fix = f"change images, or delete {folder} to train from the start"
    raise ValueError(f"{folder.parent.name}: {found}. Fix: {fix}")


def take_over(folder: Path, target: Path, *, images: int) -> bool:
    """Take a finished run from its published files into a work folder that has nothing; return whether this was done.

    It has seen at least `images` images.
    """
    if os.path.lexists(folder / DONE) or newest_state(folder) is not None:
        return False
    with contextlib.suppress(ValueError, OSError):
        summary = read_record(target / SUMMARY)
        digests = summary.get("files") or {}
        names = [*(digests or _names(target, summary))]
        is_whole = summary["images_seen"] >= images and summary["spec"] in specs_of(folder)
        if is_whole and all(_flaw_of_file(target / name, digests.get(name)) is None for name in names):
            for name in names:
                link(target / name, folder / name, copy=name == LOG)
            write_json(folder / DONE, summary)
            return True
    return False


def withdrawn(folder: Path, *, document: Mapping[str, Any] | None = None, published: Path | None = None) -> str | None:
    """Return None for a run that is finished as done.json states, else why it is not, and remove done.json.

    Compares every file with its digest. One that is gone or damaged is taken from `published` where it is whole there;
    without digests, of an earlier version, the files must exist. `document` is the content of run.yaml, if known: the
    run must have seen its number of images.
    """
    try:
        done = read_record(folder / DONE)
        flaw = _flaw_of_facts(done, folder=folder, document=document or {})
        flaw = flaw or _flaw_of_files(done, folder=folder, document=document or {}, published=published)
    except ValueError as error:
        flaw = str(error)
    if flaw is not None:
        (folder / DONE).unlink(missing_ok=True)
    return flaw


def _flaw_of_facts(done: Mapping[str, Any], *, folder: Path, document: Mapping[str, Any]) -> str | None:
    if done.get("spec") not in specs_of(folder):
        return f"{DONE}: spec: got {done.get('spec')!r}, expected {folder.name!r}"
    expected = document.get("run")
    if expected is not None and done.get("run") != expected:
        return f"{DONE}: run: got {done.get('run')!r}, expected {expected!r}"
    seen = done.get("images_seen")
    if not isinstance(seen, int) or not isinstance(done.get("files", {}), dict):
        return f"{DONE}: got none of the facts of a finished run"
    if seen < document.get("images", seen):
        return f"{DONE}: images_seen: got {seen:,}, expected {document['images']:,}"
    return None


def _flaw_of_files(
    done: Mapping[str, Any], *, folder: Path, document: Mapping[str, Any], published: Path | None
) -> str | None:
    names = dict.fromkeys((LOG, f"snapshots/{done['images_seen']}.safetensors"))
    files = done.get("files", {})
    # A config may request snapshots that the run has passed; those that it lists are what it has.
    names |= {} if files else {f"snapshots/{count}.safetensors": None for count in document.get("snapshots", ())}
    for name, digest in (names | files).items():
        flaw = _flaw_of_file(folder / name, digest)
        if flaw is None:
            continue
        if published is None or digest is None or _flaw_of_file(published / name, digest) is not None:
            return f"{name} {flaw}"
        _logger.warning("%s: %s %s; taken from %s", folder, name, flaw, published)
        link(published / name, folder / name, copy=name == LOG)
    return None


def _flaw_of_file(path: Path, digest: str | None) -> str | None:
    try:
        regular_file(path)
    except FileNotFoundError:
        return "is gone"
    except (ValueError, OSError):
        return "is not a file"
    if digest is not None and sha256_of_file(path) != digest:
        return "has changed since it was written (its SHA-256 differs)"
    return None


def _names(folder: Path, done: Mapping[str, Any]) -> Iterable[str]:
    """Return the files to publish: those that done.json lists; without a list, of an earlier version, all."""
    found = sorted(f"snapshots/{path.name}" for path in (folder / "snapshots").glob("*.safetensors"))
    return done.get("files") or [*found, LOG]
