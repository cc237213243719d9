"""What is to be trained, from which files and where it works: all that a launcher must know, and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onestep.archive import digest_of
from onestep.files import canonical_json, sha256_of_file, sha256_of_text


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files a run trains from.

    Attributes:
        run: Its run.yaml.
        data: The dataset archive.
        teacher: The network it starts from, or None.
        backbones: What its discriminator looks through, by name.
        class_embeddings: The table from which its discriminator's knowledge of classes starts, or None.
    """

    run: Path
    data: Path
    teacher: Path | None = None
    backbones: Mapping[str, Path] = field(default_factory=dict)
    class_embeddings: Path | None = None

    def digests(self) -> dict[str, Any]:
        """Return the SHA-256 of each input's content; a dataset's is read from its card where there is one."""
        return {
            "data": digest_of(self.data),
            "teacher": None if self.teacher is None else sha256_of_file(self.teacher),
            "backbones": {name: sha256_of_file(path) for name, path in self.backbones.items()},
            **({"class_embeddings": sha256_of_file(self.class_embeddings)} if self.class_embeddings else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One run to be trained.

    Attributes:
        inputs: What it trains from.
        state: Root of the work folders; this run works in `state/{run}/{spec}/`.
        code_in_spec: Whether other code makes another spec, and so trains anew.
        state_seconds: Seconds between two states, which is what a killed run loses at most.
        rows_per_pass: Most rows of a process that pass the networks at once; None for all.
        cache: Folder for decoded pixels that memory has no room for; None is `{state}/.cache`.
    """

    inputs: Inputs
    state: Path
    code_in_spec: bool
    state_seconds: float
    rows_per_pass: int | None = None
    cache: Path | None = None

    def document(self) -> dict[str, Any]:
        """Return the run's resolved config, as its run.yaml holds it."""
        return yaml.safe_load(self.inputs.run.read_text())

    def spec(self, code: str) -> str:
        """Return the name of the run's science; reads every input that has no card.

        Args:
            code: Fingerprint of the training code.
        """
        return spec_of(self.document(), digests=self.inputs.digests(), code=code if self.code_in_spec else None)

    def folder(self, code: str) -> Path:
        """Return the folder the run works in; reads every input that has no card."""
        return self.state / self.document()["run"] / self.spec(code)


def spec_of(document: Mapping[str, Any], *, digests: Mapping[str, Any], code: str | None) -> str:
    """Return the 16-digit name of a run's science: resolved config, content of inputs and, where asked, code."""
    science = {"run": document, "inputs": digests} | ({} if code is None else {"code": code})
    return sha256_of_text(canonical_json(science))[:16]
