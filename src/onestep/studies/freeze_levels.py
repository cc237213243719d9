"""Which parameters should fine-tuning freeze? (D2O-F, arXiv:2506.09376: levels 0 to 3, published 1.66 and 1.54)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onestep.records import read_summary
from onestep.studies import Findings, Observable, Summary, Verdict
from onestep.studies._arms import (
    CHOICES,
    UNDECIDED,
    Arms,
    Trainings,
    arrays_of,
    check_arms,
    decided,
    finite,
    gap,
    observed_by,
    trainings_of,
)
from onestep.studies._arms_figure import drawing

__all__ = ["FreezeLevels"]


@dataclass(frozen=True, kw_only=True)
class FreezeLevels:
    """One arm for each set of frozen parameters, all else equal.

    Attributes:
        arms: By label, the runs of an arm, one for each training seed.
        trained: Label of the arm that trains everything, D2O.
        frozen: Label of the arm of the claim, D2O-F: `freeze: [conv, proj]`.
        at_random: Label of the control: as many parameters as in `frozen`, of random tensors (`freeze_seed`).
        value: Which value of the metric.
        seeds: Seed blocks.
        recall: The recall, as `metric.value`, for the rule of collapse; None where it is not measured.
    """

    question: ClassVar[str] = "Frozen convolutions improve fine-tuning, and more than as many other parameters."
    rule: ClassVar[str] = (
        "Confirmed: the mean last value with frozen convolutions is below that with everything trained, and below that "
        "with random tensors frozen, by more than 2 deviations each. Contradicted: it is above that with everything "
        f"trained by more than 2 deviations. Not confirmed: otherwise. {UNDECIDED}"
    )
    choices: ClassVar[tuple[str, ...]] = (
        "The random tensors are drawn from all of the network, so where most parameters are frozen most are the same "
        "in both arms: a difference between the two is a lower bound.",
        "Arms that train only norms and the scales of the embedding, or freeze the encoder or the decoder, are ours.",
        "All arms have the learning rate of the config; another one may suit another number of trained parameters.",
        *CHOICES,
    )

    arms: Arms
    trained: str
    frozen: str
    at_random: str
    sampler: str
    metric: str
    value: str
    seeds: tuple[str, ...]
    recall: str | None = None

    def __post_init__(self) -> None:
        check_arms(self.arms, named=(self.trained, self.frozen, self.at_random))

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot, the logs and the facts of the runs."""
        runs = [run for each in self.arms.values() for run in each]
        return {**observed_by(self), **{f"summary.{run}": Summary(run=run) for run in runs}}

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return last and best values, the frozen share of each arm, and gaps to the control in deviations."""
        found = trainings_of(self, files)
        shares = {
            f"{label}.frozen_share": statistics.fmean(
                float(read_summary(path, run=run, keys=("frozen_share",))["frozen_share"])
                for run in runs
                for path in files[f"summary.{run}"]
            )
            for label, runs in self.arms.items()
        }
        others = [label for label in self.arms if label != self.trained]
        gaps = {f"{label}.gap": gap(found.last(label), found.last(self.trained)) for label in others}
        gaps["frozen against random"] = gap(found.last(self.frozen), found.last(self.at_random))
        levels = {f"{label}.{self.value}.last": statistics.fmean(found.last(self.trained)) for label in others}
        return Findings(
            arrays=arrays_of(found.curves, value=self.value),
            numbers=finite(found.numbers(value=self.value) | shares | gaps),
            control=levels,
            verdict=self._verdict(found),
            draw=drawing(found.curves, label=f"{self.metric}.{self.value}"),
        )

    def _verdict(self, found: Trainings) -> Verdict:
        against_all = gap(found.last(self.frozen), found.last(self.trained))
        against_random = gap(found.last(self.frozen), found.last(self.at_random))
        if against_all is None or against_random is None:
            return "undecided"
        if against_all < -2 and against_random < -2:
            return decided(self.arms, "confirmed")
        return decided(self.arms, "contradicted" if against_all > 2 else "not confirmed")
