"""Does freezing convolutions help methods other than D2O? No paper reports it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from onestep.config.constraints import Constraint, Text
from onestep.studies import Findings, Observable, Verdict
from onestep.studies._arms import CHOICES, UNDECIDED, Trainings, arrays_of, check_arms, decided, finite, gap
from onestep.studies._arms_figure import few_ticks, look
from onestep.studies._methods import StudyOfMethods, expect_equal_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FreezingElsewhere"]


def gap_rule(others: str, *, gap_of: str) -> str:
    """Return the rule of a study that compares `others`, each with frozen parameters and without."""
    return (
        f"The gap of a {gap_of} is the difference of the mean last values with frozen parameters and without, in units "
        f"of its deviation over training seeds. Confirmed: it is below -2 for more than half of the {others}. "
        f"Contradicted: it is above 2 for more than half of them. Not confirmed: otherwise. {UNDECIDED}"
    )


@dataclass(frozen=True, kw_only=True)
class FreezingElsewhere(StudyOfMethods):
    """Methods with everything trained, and each with the frozen parameters of D2O-F.

    Attributes:
        frozen: By label of a fully trained arm, that of the same method with frozen parameters.
        known: Label of the fully trained arm of D2O, the control, whose pair does not decide.
        stated: Choices of the config, one sentence each.
    """

    question: ClassVar[str] = "Freezing the convolutions of the generator helps other methods than D2O, too."
    rule: ClassVar[str] = gap_rule("methods other than D2O", gap_of="method")

    frozen: Annotated[Mapping[Text, Text], Constraint(min_length=1)]
    known: Text
    stated: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        check_arms(self.arms, named=(self.known, *self.frozen, *self.frozen.values(), *(self.samplers or {})))
        if not self._others:
            raise ValueError(f"frozen: got {self.known!r} alone, expected other methods beside it")

    @property
    def choices(self) -> tuple[str, ...]:
        """Choices of every study of arms, of this one and of its config."""
        own = ("Frozen parameters change no learning rate, unless the config states others.",)
        return (*CHOICES, *own, *self.stated)

    @property
    def _others(self) -> list[str]:
        return [label for label in self.frozen if label != self.known]

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot, and the logs."""
        return self.observes_metrics([self.metric])

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return values of each arm, and of each method the gap and the ratio of frozen to fully trained."""
        found = self.trainings(files)
        numbers: dict[str, float | None] = {**found.numbers(value=self.value)}
        for full, frozen in self.frozen.items():
            expect_equal_images(found, [frozen], of=full)
            ratio = statistics.fmean(found.last(frozen)) / statistics.fmean(found.last(full))
            numbers |= {f"{full}.frozen gap": gap(found.last(frozen), found.last(full)), f"{full}.frozen ratio": ratio}
        levels = {f"{frozen}.{self.value}.last": found.last(full) for full, frozen in self.frozen.items()}
        return Findings(
            arrays=arrays_of(found.curves, value=self.value),
            numbers=finite(numbers),
            control={name: statistics.fmean(values) for name, values in levels.items()},
            verdict=self._verdict(found),
            draw=lambda figure: self._draw(figure, found),
        )

    def _verdict(self, found: Trainings) -> Verdict:
        gaps = [gap(found.last(self.frozen[label]), found.last(label)) for label in self._others]
        known = [each for each in gaps if each is not None]
        if len(known) < len(gaps):
            return "undecided"
        decisive = {each: self.arms[each] for label in self._others for each in (label, self.frozen[label])}
        if 2 * sum(each < -2 for each in known) > len(known):
            return decided(decisive, "confirmed")
        is_worse = 2 * sum(each > 2 for each in known) > len(known)
        return decided(decisive, "contradicted" if is_worse else "not confirmed")

    def _draw(self, figure: Figure, found: Trainings) -> None:
        """Draw the last value of each training, fully trained to the left and frozen to the right of each method."""
        axes, reach = figure.add_subplot(), list[float]()
        sides = {"fully trained": (-0.12, list(self.frozen)), "frozen": (0.12, list(self.frozen.values()))}
        for index, (name, (shift, labels)) in enumerate(sides.items()):
            points = [(place + shift, value) for place, each in enumerate(labels) for value in found.last(each)]
            reach += [value for _, value in points]
            axes.plot(*zip(*points, strict=True), linestyle="none", markersize=4, label=name, **look(index))
        axes.set_xticks(range(len(self.frozen)), list(self.frozen), rotation=30, ha="right")
        if min(reach) > 0:
            axes.set_yscale("log")
            few_ticks(axes.yaxis, reach)
        axes.set_ylabel(f"last {self.measured}")
        axes.legend()
