"""Which discriminator fine-tunes a denoiser without collapse? (D2O, arXiv:2506.09376, ablation of the GAN loss)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onestep.studies import Findings, Verdict
from onestep.studies._arms import (
    CHOICES,
    COLLAPSE,
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

__all__ = ["Discriminators"]


@dataclass(frozen=True, kw_only=True)
class Discriminators(StudyOfArms):
    """One arm for each discriminator, all else equal.

    Attributes:
        from_scratch: Label of the discriminator without pre-trained features, such as StyleGAN2's.
        single_scale: Labels of those on pre-trained features of one scale.
        multi_scale: Label of the one on pre-trained features of several scales: the control.
        reduced: The data is smaller than the paper's: a collapse that does not show then decides nothing.
    """

    question: ClassVar[str] = (
        "A discriminator without pre-trained features collapses, those with them do not, and several scales are best."
    )
    rule: ClassVar[str] = (
        f"A training has collapsed if {COLLAPSE}. Confirmed: each training from scratch has collapsed or has a best "
        "value above 3 times that of several scales, no training on pre-trained features has collapsed, and the mean "
        "last value of several scales is below that of each single scale. Contradicted: no training from scratch has "
        "collapsed, and its mean last value is below that of several scales by more than 2 deviations; in a reduced "
        f"setting a claim without a collapse is undecided instead. Not confirmed: otherwise. {UNDECIDED}"
    )
    choices: ClassVar[tuple[str, ...]] = (
        "The scale of the loss is that of the run's `rows_per_rank` times a mean over images, for all discriminators.",
        "The features of a single scale, the width of their head and the number of its logits are those of the config; "
        "the paper does not name its own.",
        *CHOICES,
    )

    from_scratch: str
    single_scale: tuple[str, ...]
    multi_scale: str
    reduced: bool = False

    def __post_init__(self) -> None:
        check_arms(self.arms, named=(self.from_scratch, *self.single_scale, self.multi_scale))
        if not self.single_scale or not self.seeds:
            raise ValueError("single_scale and seeds: got an empty list, expected at least one of each")

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return last and best values, collapses, and the distance of each arm to the control in deviations."""
        found = self.trainings(files)
        others = [label for label in self.arms if label != self.multi_scale]
        control = found.levels(self.multi_scale, value=self.value)
        return Findings(
            arrays=arrays_of(found.curves, value=self.value),
            numbers=finite(found.numbers(value=self.value) | found.gaps(self.multi_scale)),
            control=control | {f"{label}.collapsed": found.collapsed(self.multi_scale) for label in others},
            verdict=self._verdict(found),
            draw=drawing(found.curves, label=self.measured),
        )

    def _verdict(self, found: Trainings) -> Verdict:
        last = {label: statistics.fmean(found.last(label)) for label in self.arms}
        bound = 3 * statistics.fmean(found.best(self.multi_scale))
        scratch = zip(found.collapses[self.from_scratch], found.best(self.from_scratch), strict=True)
        fails = [reason is not None or best > bound for reason, best in scratch]
        pretrained = (*self.single_scale, self.multi_scale)
        stable = not any(found.collapsed(label) for label in pretrained)
        if all(fails) and stable and all(last[self.multi_scale] < last[label] for label in self.single_scale):
            return decided(self.arms, "confirmed")
        if not any(fails) and self.reduced:
            return "undecided"
        ahead = gap(found.last(self.from_scratch), found.last(self.multi_scale))
        if not found.collapsed(self.from_scratch) and ahead is not None and ahead < -2:
            return decided(self.arms, "contradicted")
        return decided(self.arms, "not confirmed")
