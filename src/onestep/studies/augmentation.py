"""Does augmenting the discriminator's images slow fine-tuning? (D2O, arXiv:2506.09376, ablation of augmentation)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onestep.studies import Findings, Verdict
from onestep.studies._arms import (
    CHOICES,
    UNDECIDED,
    Pair,
    StudyOfArms,
    Trainings,
    arrays_of,
    check_arms,
    decided,
    finite,
    gap,
)
from onestep.studies._arms_figure import drawing

__all__ = ["Augmentation"]

_THRESHOLD = 1.5  # times the last value without augmentation


@dataclass(frozen=True, kw_only=True)
class Augmentation(StudyOfArms):
    """One arm for each augmentation, and for the reason of the claim a teacher with and one without augmentation.

    Attributes:
        without: Label of the arm without augmentation.
        plain_teacher: Labels of a pair without and with augmentation, from a teacher that was trained without it.
        augmented_teacher: The same from a teacher that was trained with it; both or neither.
    """

    question: ClassVar[str] = (
        "Augmentation slows fine-tuning, because the teacher was trained with augmentation already."
    )
    rule: ClassVar[str] = (
        f"The slowdown of a training is the images until its value is at most {_THRESHOLD} times the mean last value "
        "without augmentation, divided by those of the training without augmentation at the same place of its arm. "
        "Confirmed: it is above 1 for every training of every augmentation. Contradicted: it is below 1 for every one. "
        f"Not confirmed: otherwise. {UNDECIDED} The reason is no part of the verdict: it is supported where "
        "`reason.gap`, the logarithm of the slowdown with an augmented teacher less that with a plain one, is above 2 "
        "deviations."
    )
    choices: ClassVar[tuple[str, ...]] = (
        "Which augmentations are compared, and their strength; the paper does not name its own.",
        "The reason is tested by a 2x2 design: a teacher with and one without augmentation, fine-tuned with and "
        "without.",
        *CHOICES,
    )

    without: str
    plain_teacher: Pair | None = None
    augmented_teacher: Pair | None = None

    def __post_init__(self) -> None:
        pairs = (self.plain_teacher, self.augmented_teacher)
        if (self.plain_teacher is None) != (self.augmented_teacher is None):
            raise ValueError("plain_teacher and augmented_teacher: got one of them, expected both or neither")
        check_arms(self.arms, named=(self.without, *(label for pair in pairs for label in pair or ())))
        lengths = {label: len(runs) for label, runs in self.arms.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"arms: got {lengths} trainings, expected as many in each arm: they are compared in pairs")
        if not self.compared:
            raise ValueError(f"arms: got {', '.join(self.arms)}, expected an augmentation beside {self.without!r}")

    @property
    def compared(self) -> tuple[str, ...]:
        """Labels of the augmentations: all arms but `without` and those from the other teacher."""
        pairs = [each for each in (self.plain_teacher, self.augmented_teacher) if each and self.without not in each]
        others = {label for pair in pairs for label in pair}
        return tuple(label for label in self.arms if label != self.without and label not in others)

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return last and best values and the slowdown of each augmentation, and what the 2x2 design shows."""
        found = self.trainings(files)
        slowdowns = {label: _slowdowns(found, without=self.without, on=label) for label in self.compared}
        numbers: dict[str, float | None] = dict(found.numbers(value=self.value))
        numbers |= {f"{label}.slowdown": _geometric_mean(ratios) for label, ratios in slowdowns.items()}
        if self.plain_teacher is not None and self.augmented_teacher is not None:
            plain = _slowdowns(found, without=self.plain_teacher[0], on=self.plain_teacher[1])
            augmented = _slowdowns(found, without=self.augmented_teacher[0], on=self.augmented_teacher[1])
            numbers |= {"reason.slowdown, plain teacher": _geometric_mean(plain)}
            numbers |= {"reason.slowdown, augmented teacher": _geometric_mean(augmented)}
            numbers |= {"reason.gap": _gap_of_logarithms(augmented, plain)}
        level = statistics.fmean(found.last(self.without))
        return Findings(
            arrays=arrays_of(found.curves, value=self.value),
            numbers=finite(numbers),
            control={f"{label}.{self.value}.last": level for label in self.compared}
            | {f"{label}.slowdown": 1.0 for label in self.compared},
            verdict=decided(self.arms, _verdict([ratio for each in slowdowns.values() for ratio in each])),
            draw=drawing(
                found.curves,
                label=self.measured,
                levels={f"{_THRESHOLD} x {self.without}": _THRESHOLD * level},
            ),
        )


def _slowdowns(found: Trainings, *, without: str, on: str) -> tuple[float, ...]:
    """Return for each pair of trainings the ratio of images until the threshold; infinity where `on` never reaches it.

    NaN where the training without augmentation does not.
    """
    threshold = _THRESHOLD * statistics.fmean(found.last(without))
    pairs = zip(found.curves[on], found.curves[without], strict=True)
    until = [(one.images_until(threshold), other.images_until(threshold)) for one, other in pairs]
    return tuple(one / other if math.isfinite(other) else math.nan for one, other in until)


def _geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


def _gap_of_logarithms(one: Sequence[float], other: Sequence[float]) -> float | None:
    if not all(map(math.isfinite, (*one, *other))):
        return None
    return gap([math.log(each) for each in one], [math.log(each) for each in other])


def _verdict(ratios: Sequence[float]) -> Verdict:
    if all(ratio > 1 for ratio in ratios):
        return "confirmed"
    return "contradicted" if all(ratio < 1 for ratio in ratios) else "not confirmed"
