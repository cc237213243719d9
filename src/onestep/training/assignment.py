"""One training as a launcher sees it: the run, its files, its work folder, its publication. Imports no torch."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onestep.archive import digest_of
from onestep.checkpoints.digests import checked_digest, read_record
from onestep.files import canonical_json, regular_file, replacing, sha256_of_file, sha256_of_text, write_json

_logger = logging.getLogger(__name__)

DONE = "done.json"
"""The facts of a finished run in its work folder, with the digests of its files; summary.json is its copy."""

FAILED = "failed.json"
"""The reason why the last start of a run failed."""

_LOG = "log.jsonl"
_SEEN = ("watch", "tensorboard")  # folders of what was made while the run trained


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The input files of a run: its run.yaml, the dataset archive, and the networks that it starts from."""

    run: Path
    data: Path
    teacher: Path | None = None
    backbones: Mapping[str, Path] = field(default_factory=dict)
    class_embeddings: Path | None = None

    def digests(self, *, read: Callable[[Path], str] = checked_digest) -> dict[str, Any]:
        """Return the SHA-256 of each file's content by `read`; that of a dataset comes from its card if there is one.

        Raises:
            ValueError: A network has another digest than is recorded beside it.
        """
        return {
            "data": digest_of(self.data),
            "teacher": None if self.teacher is None else read(self.teacher),
            "backbones": {name: read(path) for name, path in self.backbones.items()},
            **({"class_embeddings": read(self.class_embeddings)} if self.class_embeddings else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One run to train.

    Attributes:
        state: Root of the work folders; the one of this run is `state/{run}/{spec}/`.
        code_in_spec: Whether the code is part of the run hash, so that other code trains from the start.
        state_seconds: Seconds between two states: the most that a killed run loses.
        micro_batch: Images of one rank that pass through the networks at once; None for all.
        cache: Folder for decoded pixels that exceed the memory limit; None is `{state}/.cache`.
    """

    inputs: Inputs
    state: Path
    code_in_spec: bool
    state_seconds: float
    micro_batch: int | None = None
    cache: Path | None = None

    def document(self) -> dict[str, Any]:
        """Return the content of run.yaml; ValueError if it is not that of a run."""
        path = self.inputs.run
        regular_file(path)
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            words = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: not a YAML file ({words}). Fix: write it with `onestep resolve`") from error
        if not isinstance(document, dict) or not isinstance(document.get("run"), str):
            found = "no key `run`" if isinstance(document, dict) else type(document).__name__
            raise ValueError(f"{path}: got {found}, expected the configuration of a run. Fix: `onestep resolve`")
        return document

    def spec(self, code: str) -> str:
        """Return the run hash for a fingerprint of the training code; reads every input that has no card."""
        return spec_of(self.document(), digests=self.inputs.digests(), code=code if self.code_in_spec else None)

    def folder(self, code: str) -> Path:
        """Return the work folder; reads every input that has no card."""
        return self.state / self.document()["run"] / self.spec(code)


def spec_of(document: Mapping[str, Any], *, digests: Mapping[str, Any], code: str | None) -> str:
    """Return the run hash, 16 hexadecimal digits: of configuration, input files and optionally the code."""
    science = {"run": document, "inputs": digests} | ({} if code is None else {"code": code})
    return sha256_of_text(canonical_json(science))[:16]


def publish(folder: Path, target: Path, *, whole: bool = False) -> None:
    """Publish the finished run's files under `target`, each atomically; by hard links where possible.

    `withdrawn` compares them with their digests first, unless it has just done so: `whole`.

    Raises:
        ValueError: The run is not finished as done.json states; done.json is withdrawn.
    """
    if not whole and (flaw := withdrawn(folder, published=target)) is not None:
        raise ValueError(f"{folder}: {flaw}. Fix: run the same command again, which trains the run again")
    done = read_record(folder / DONE)
    names = _names(folder, done)
    summary = target / "summary.json"
    if summary.exists() and not is_published(folder, target):
        summary.unlink()  # its digests are those of other files
    # Snapshots of an earlier run hash at other counts are not this run's.
    for stale in {f"snapshots/{path.name}" for path in (target / "snapshots").glob("*")} - set(names):
        (target / stale).unlink()
    for name in names:
        _link(folder / name, target / name)
    show(folder, target)
    # Last, because it marks the others as complete.
    write_json(summary, done)


def show(folder: Path, target: Path) -> None:
    """Make the samples, numbers and event files of a work folder those under `target`; also while the run trains."""
    for name in _SEEN:
        files = {path.name: path for path in (folder / name).glob("[!.]*")}
        for stale in [path for path in (target / name).glob("*") if path.name not in files]:
            stale.unlink()
        for path in files.values():
            shown = target / name / path.name
            if not (shown.exists() and shown.samefile(path)):
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
        return there and read_record(target / "summary.json") == done
    return False


def withdrawn(folder: Path, *, document: Mapping[str, Any] | None = None, published: Path | None = None) -> str | None:
    """Return None for a run that is finished as done.json states, else why it is not, and remove done.json.

    Compares every file with its digest. One that is gone or damaged is taken from `published` where it is whole there;
    without digests, of an earlier version, the files must exist. `document` is the content of run.yaml, if known.
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
    expected = {"spec": folder.name, "run": document.get("run"), "images_seen": document.get("images")}
    for key, value in expected.items():
        if value is not None and done.get(key) != value:
            return f"{DONE}: {key}: got {done.get(key)!r}, expected {value!r}"
    if not isinstance(done.get("images_seen"), int) or not isinstance(done.get("files", {}), dict):
        return f"{DONE}: got none of the facts of a finished run"
    return None


def _flaw_of_files(
    done: Mapping[str, Any], *, folder: Path, document: Mapping[str, Any], published: Path | None
) -> str | None:
    names = {_LOG: None, f"snapshots/{done['images_seen']}.safetensors": None}
    names |= {f"snapshots/{count}.safetensors": None for count in document.get("snapshots", ())}
    for name, digest in (names | done.get("files", {})).items():
        flaw = _flaw_of_file(folder / name, digest)
        if flaw is None:
            continue
        if published is None or digest is None or _flaw_of_file(published / name, digest) is not None:
            return f"{name} {flaw}"
        _logger.warning("%s: %s %s; taken from %s", folder, name, flaw, published)
        _link(published / name, folder / name)
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
    return done.get("files") or [*found, _LOG]


def _link(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        # A link keeps the old time; Snakemake needs that of the publication.
        os.utime(temporary)
