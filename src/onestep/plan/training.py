"""The runs: what each reads, and what it publishes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onestep.config.reading import run_document
from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.models import Teacher
from onestep.plan.backbones import Backbones
from onestep.plan.class_embeddings import ClassEmbeddings
from onestep.plan.paths import archive, weights
from onestep.plan.snapshots import Snapshots
from onestep.stages import training_code


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What the train rule of one run needs.

    Attributes:
        name: The run.
        data: Its dataset archive.
        weights: Files it starts from or looks through.
        options: Those files as options of `onestep train`.
        snapshots: The files it publishes.
        code: Fingerprint of its training code where the config says that training follows code, else empty.
    """

    name: str
    data: str
    weights: list[str]
    options: str
    snapshots: list[str]
    code: str


class Training:
    """The section `runs`.

    Args:
        experiment: The config.
        snapshots: What runs publish.
        backbones: What their discriminators look through.
        class_embeddings: What these know of the classes at first.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        snapshots: Snapshots,
        backbones: Backbones,
        class_embeddings: ClassEmbeddings,
        fingerprints: Fingerprints,
    ) -> None:
        self._experiment, self._snapshots, self._backbones = experiment, snapshots, backbones
        self._class_embeddings, self._fingerprints = class_embeddings, fingerprints

    def document(self, wildcards: Any) -> str:
        """A run with every default filled in."""
        return canonical_json(run_document(self._experiment, wildcards.run))

    @property
    def runs(self) -> Iterator[RunPlan]:
        """What each train rule needs."""
        return map(self._run, self._experiment.runs)

    def _run(self, name: str) -> RunPlan:
        teacher, backbones, embeddings = self._teacher(name), self._looks_through(name), self._embeddings(name)
        options = [f"--teacher {path}" for path in teacher] + [f"--backbone {b}={p}" for b, p in backbones.items()]
        options += [f"--class-embeddings {path}" for path in embeddings]
        follows = self._experiment.rerun.training_on_code_change
        return RunPlan(
            name=name,
            data=archive(self._experiment.runs[name].dataset),
            weights=[*teacher, *dict.fromkeys(backbones.values()), *embeddings],
            options=" ".join([*options, *(["--code-in-spec"] if follows else [])]),
            snapshots=self._snapshots.of(name),
            code=self.code_of(name) if follows else "",
        )

    def _teacher(self, run: str) -> list[str]:
        teacher = self._experiment.runs[run].teacher
        return [] if teacher is None else [weights(Teacher(name=teacher))]

    def _looks_through(self, run: str) -> dict[str, str]:
        """Return the networks of the backbones of a run's discriminator by name."""
        discriminator = self._experiment.runs[run].discriminator
        names = () if discriminator is None else discriminator.backbones
        return {name: self._backbones.weights(name) for name in names}

    def _embeddings(self, run: str) -> list[str]:
        discriminator = self._experiment.runs[run].discriminator
        name = None if discriminator is None else discriminator.class_embeddings
        return [] if name is None else [self._class_embeddings.path(name)]

    def code_of(self, run: str) -> str:
        """Return the fingerprint of the code that would train a run now."""
        return training_code(run_document(self._experiment, run), fingerprints=self._fingerprints)
