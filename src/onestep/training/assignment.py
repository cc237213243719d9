"""One training as a launcher sees it: the run, its files, its work folder, its publication. Imports no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onestep.archive import digest_of
from onestep.files import canonical_json, read_json, replacing, sha256_of_file, sha256_of_text, write_json


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The input files of a run: its run.yaml, the dataset archive, and the networks that it starts from."""

    run: Path
    data: Path
    teacher: Path | None = None
    backbones: Mapping[str, Path] = field(default_factory=dict)
    class_embeddings: Path | None = None

    def digests(self) -> dict[str, Any]:
        """Return the SHA-256 of each file's content; that of a dataset comes from its card if there is one."""
        return {
            "data": digest_of(self.data),
            "teacher": None if self.teacher is None else sha256_of_file(self.teacher),
            "backbones": {name: sha256_of_file(path) for name, path in self.backbones.items()},
            **({"class_embeddings": sha256_of_file(self.class_embeddings)} if self.class_embeddings else {}),
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
        """Return the content of run.yaml."""
        return yaml.safe_load(self.inputs.run.read_text(encoding="utf-8"))

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
