"""The contract of a study: a question of a paper, answered from files of the pipeline by a rule stated in advance.

A study is a frozen dataclass of options in a file of this folder, or outside the package. The workflow reads `observes`
to find the files, also where torch is missing: a study imports torch, numpy and matplotlib in its methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

Verdict = Literal["confirmed", "not confirmed", "contradicted", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """A metric of one model, a teacher, `run@images` or `run`, its last snapshot: one JSON for each block of seeds."""

    model: str
    sampler: str
    seeds: tuple[str, ...]
    metric: str


@dataclass(frozen=True, kw_only=True)
class SnapshotMeasurements:
    """A metric of each snapshot of a run, otherwise as `Measurements`: one JSON for each snapshot and seed block."""

    run: str
    sampler: str
    seeds: tuple[str, ...]
    metric: str


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a teacher, of `run@images` or of `run`, its last snapshot, for a study of the network itself."""

    model: str
    blocks: bool = False  # whether the study observes blocks, which the network's file has to name (`block_layers`)


@dataclass(frozen=True, kw_only=True)
class SnapshotWeights:
    """The weights of each snapshot of a run."""

    run: str


@dataclass(frozen=True, kw_only=True)
class RoleWeights:
    """The weights of another network of a run, by its role, at its end.

    The objective has to publish them (`also_publishes`; see `onestep.objectives.Objective`).
    """

    run: str
    role: str


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The images of one seed block, `pixels` uint8 [N, H, W, C]."""

    model: str
    sampler: str
    seeds: str


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of one seed block, `features` [N, D]."""

    model: str
    sampler: str
    seeds: str
    features: str


@dataclass(frozen=True, kw_only=True)
class SnapshotFeatures:
    """The features of one seed block of each snapshot of a run."""

    run: str
    sampler: str
    seeds: str
    features: str


@dataclass(frozen=True, kw_only=True)
class RealFeatures:
    """The features of the images of a dataset."""

    dataset: str
    features: str


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """The archive of a dataset."""

    dataset: str


@dataclass(frozen=True, kw_only=True)
class Log:
    """The training log of a run: one JSON record per line."""

    run: str


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The run.yaml of a run: its whole block of the config, with every default."""

    run: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The facts of a finished run, such as the share of its parameters that are frozen."""

    run: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run computes for each image: operations and network passes, counted without training it (`bench work`)."""

    run: str


Numbers = Measurements | SnapshotMeasurements
Images = Weights | SnapshotWeights | RoleWeights | Samples | Features | SnapshotFeatures | RealFeatures | RealImages
Observable = Numbers | Images | Log | Configuration | Summary | Work


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a study found."""

    arrays: Mapping[str, np.ndarray]  # the data of the figure and of the verdict, by name
    numbers: Mapping[str, float]
    control: Mapping[str, float]  # the same quantities where the effect is absent
    verdict: Verdict
    draw: Callable[[Figure], None]  # draws the figure into an empty one


class Study(Protocol):
    """A class in a file of this folder, or outside the package."""

    question: ClassVar[str]  # the claim under test, in one sentence
    rule: ClassVar[str]  # how the verdict follows from numbers and control, in one sentence for each verdict
    choices: ClassVar[tuple[str, ...]]  # decisions where the paper leaves room, one sentence each

    def observes(self) -> Mapping[str, Observable]:
        """Return what the study reads, by names of its own; empty for one that computes all it needs."""
        ...

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return the findings from the files of each observable, in any order: a file contains its identity."""
        ...
