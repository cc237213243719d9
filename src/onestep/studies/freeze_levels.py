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
    StudyOfArms,
    Trainings,
    arrays_of,
    check_arms,
    decided,
    finite,
    gap,
)
from onestep.studies._arms_figure import drawing

__all__ = ["FreezeLevels"]


@dataclass(frozen=True, kw_only=True)
class FreezeLevels(StudyOfArms):
    """One arm for each set of frozen parameters, all else equal.

    Attributes:
        trained: Label of the arm that trains everything, D2O.
        frozen: Label of the arm of the claim, D2O-F: `freeze: [conv, proj]`.
        at_random: Label of the control: as many parameters as in `frozen`, of random tensors (`freeze_seed`).
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

    trained: str
    frozen: str
    at_random: str

    def __post_init__(self) -> None:
        check_arms(self.arms, named=(self.trained, self.frozen, self.at_random))

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot, the logs and the facts of the runs."""
        return {**super().observes(), **{f"summary.{run}": Summary(run=run) for run in self.runs}}

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return last and best values, the frozen share of each arm, and gaps to the control in deviations."""
        found = self.trainings(files)
        shares = {
            f"{label}.frozen_share": statistics.fmean(
                float(read_summary(path, run=run, keys=("frozen_share",))["frozen_share"])
                for run in runs
                for path in files[f"summary.{run}"]
            )
            for label, runs in self.arms.items()
        }
        gaps = found.gaps(self.trained)
        gaps["frozen against random"] = gap(found.last(self.frozen), found.last(self.at_random))
        return Findings(
            arrays=arrays_of(found.curves, value=self.value),
            numbers=finite(found.numbers(value=self.value) | shares | gaps),
            control=found.levels(self.trained, value=self.value),
            verdict=self._verdict(found),
            draw=drawing(found.curves, label=self.measured),
        )

    def _verdict(self, found: Trainings) -> Verdict:
        against_all = gap(found.last(self.frozen), found.last(self.trained))
        against_random = gap(found.last(self.frozen), found.last(self.at_random))
        if against_all is None or against_random is None:
            return "undecided"
        if against_all < -2 and against_random < -2:
            return decided(self.arms, "confirmed")
        return decided(self.arms, "contradicted" if against_all > 2 else "not confirmed")
