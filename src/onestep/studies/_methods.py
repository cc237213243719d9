"""What studies share that compare methods: arms with samplers of their own, and whether one arm matches another."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onestep.config.constraints import Name, Text
from onestep.records import read_summary
from onestep.studies import Observable, Verdict
from onestep.studies._arms import StudyOfArms, Trainings, decided, gap, observe

MATCH = (
    "The gap of an arm is the difference of its mean last value and that of the other, in units of its deviation over "
    "training seeds, after equal images. Confirmed: that of the arm with the least mean last value is at most 2. "
    "Contradicted: those of all arms are above 2. Not confirmed: otherwise."
)
"""The part of a rule that `match` computes."""


@dataclass(frozen=True, kw_only=True)
class StudyOfMethods(StudyOfArms):
    """The options of a study whose arms are methods.

    Attributes:
        samplers: Name of the sampler of each arm that is not sampled by `sampler`.
    """

    samplers: Mapping[Text, Name] | None = None

    @property
    def sampler_of(self) -> dict[str, str]:
        """The sampler of each arm."""
        return {label: (self.samplers or {}).get(label, self.sampler) for label in self.arms}

    def observes_metrics(self, metrics: Sequence[str]) -> dict[str, Observable]:
        """Return the measurements of each snapshot by some metrics and that of the recall, and the logs."""
        every = [*metrics, *metrics_of([] if self.recall is None else [self.recall])]
        return observe(self.arms, sampler=self.sampler_of, seeds=self.seeds, metrics=dict.fromkeys(every), logs=True)


def metrics_of(values: Sequence[str]) -> list[str]:
    """Return the metrics of some values, `metric.value`, each once."""
    return list(dict.fromkeys(each.partition(".")[0] for each in values))


def seconds_of(files: Mapping[str, Sequence[Path]], runs: Sequence[str]) -> list[float]:
    """Return the seconds of each training for 1,000 images, from its facts under `summary.{run}`."""
    found = []
    for run in runs:
        (path,) = files[f"summary.{run}"]
        summary = read_summary(path, run=run, keys=("seconds", "images_seen"))
        found.append(1_000 * summary["seconds"] / summary["images_seen"])
    return found


def expect_equal_images(found: Trainings, labels: Sequence[str], *, of: str) -> None:
    """Raise ValueError if the last snapshots of arms are at other images than those of another arm."""
    expected = found.curves[of][0].images[-1]
    for label in labels:
        if (seen := found.curves[label][0].images[-1]) != expected:
            raise ValueError(f"arms.{label}: got {seen} images, expected {expected}, those of {of}")


def match(found: Trainings, labels: Sequence[str], *, of: str, arms: Mapping[str, Sequence[str]]) -> Verdict:
    """Return the verdict of the rule `MATCH` on whether one of the arms `labels` matches another one."""
    gaps = {label: gap(found.last(label), found.last(of)) for label in labels}
    known = {label: each for label, each in gaps.items() if each is not None}
    if len(known) < len(gaps):
        return "undecided"
    best = min(labels, key=lambda label: statistics.fmean(found.last(label)))
    decisive = {label: arms[label] for label in (of, *labels)}
    if known[best] <= 2:
        return decided(decisive, "confirmed")
    return decided(decisive, "contradicted" if all(each > 2 for each in known.values()) else "not confirmed")
