"""Does a loss without a discriminator match D2O? (FD-loss, arXiv:2604.28190; RDM, arXiv:2607.02375; ECT and others)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from onestep.config.constraints import Constraint, Text
from onestep.studies import Findings, Observable, Summary
from onestep.studies._arms import CHOICES, UNDECIDED, arrays_of, check_arms, described, finite, spread
from onestep.studies._arms_figure import drawing
from onestep.studies._methods import MATCH, StudyOfMethods, expect_equal_images, match, seconds_of

__all__ = ["WithoutGan"]


@dataclass(frozen=True, kw_only=True)
class WithoutGan(StudyOfMethods):
    """Methods with the same teacher, images and frozen parameters, measured in features that none was trained on.

    Attributes:
        gan: Label of the arm that is to be matched: D2O.
        without: Labels of the arms whose losses have no discriminator.
        stated: Choices of the config, one sentence each.
    """

    question: ClassVar[str] = "A loss without a discriminator matches D2O after equal images."
    rule: ClassVar[str] = f"{MATCH} The arms are those without a discriminator, the other one is D2O. {UNDECIDED}"

    gan: Text
    without: Annotated[tuple[Text, ...], Constraint(min_length=1)]
    stated: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        check_arms(self.arms, named=(self.gan, *self.without, *(self.samplers or {})))
        if self.gan in self.without:
            raise ValueError(f"without: got {self.gan!r}, the label of the GAN, expected others")

    @property
    def choices(self) -> tuple[str, ...]:
        """Choices of every study of arms, of this one and of its config."""
        own = (
            "The best of several arms is compared with one GAN, which favours the claim.",
            "Images are real ones of a batch, and generated ones where a step reads no real image.",
            "Seconds are those of whole trainings on the machine at hand, whatever else it computed.",
        )
        return (*CHOICES, *own, *self.stated)

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot, the logs and the facts of the runs."""
        found = self.observes_metrics([self.metric])
        return {**found, **{f"summary.{run}": Summary(run=run) for run in self.runs}}

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return values and cost of each arm, and the gap of each to the GAN."""
        found = self.trainings(files)
        expect_equal_images(found, self.without, of=self.gan)
        numbers = found.numbers(value=self.value) | finite(found.gaps(self.gan))
        for label, runs in self.arms.items():
            numbers[f"{label}.images"] = found.curves[label][0].images[-1]
            numbers |= described(f"{label}.seconds_per_1000_images", spread(seconds_of(files, runs)))
        return Findings(
            arrays=arrays_of(found.curves, value=self.value),
            numbers=finite(numbers),
            control=found.levels(self.gan, value=self.value),
            verdict=match(found, self.without, of=self.gan, arms=self.arms),
            draw=drawing(found.curves, label=self.measured),
        )
