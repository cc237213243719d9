"""One training as a launcher sees it: the run, its files, its work folder. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onestep.archive import digest_of
from onestep.checkpoints.digests import checked_digest
from onestep.config.identity import spec_of, specs_of
from onestep.files import regular_file
from onestep.run_record import recorded_config


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The input files of a run: its run.yaml, the dataset archive, and the networks that it starts from."""

    run: Path
    data: Path
    teacher: Path | None = None
    backbones: Mapping[str, Path] = field(default_factory=dict)
    class_embeddings: Path | None = None
    init: Path | None = None  # the network whose weights the run's `init` names
    codec: Path | None = None  # the network of the run's `codec`
    pairs: tuple[Path, ...] = ()  # the images of the run's `pairs`, in the order of its blocks of seeds

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
            **({"init": read(self.init)} if self.init else {}),
            **({"codec": read(self.codec)} if self.codec else {}),
            **({"pairs": [read(path) for path in self.pairs]} if self.pairs else {}),
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
        keep_state: Whether a finished run keeps its final state, from which a longer one continues.
        output: Folder of published runs, for the snapshots of a SLURM job.
    """

    inputs: Inputs
    state: Path
    code_in_spec: bool
    state_seconds: float
    micro_batch: int | None = None
    cache: Path | None = None
    keep_state: bool = True
    output: Path | None = None

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
        """Return the work folder; reads every input that has no card.

        One of an earlier version, whose run hash was that of the whole run.yaml, gets a link by its new name.
        """
        # The published run beside run.yaml has the configuration before an edit of the length.
        document, kept = self.document(), code if self.code_in_spec else None
        before, digests = recorded_config(self.inputs.run.parent), self.inputs.digests()
        spec, *former = specs_of(document, before=before, digests=digests, code=kept)
        folder = self.state / document["run"] / spec
        if not folder.is_dir():
            for each in former:
                if folder.with_name(each).is_dir():
                    with contextlib.suppress(FileExistsError):  # another rank was faster
                        folder.symlink_to(each, target_is_directory=True)
                    break
        return folder
