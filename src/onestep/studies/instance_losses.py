"""Instance losses, frozen or not, and beside a GAN loss: do they help or hurt? (D2O, arXiv:2405.20750, figure 4)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from onestep.config.constraints import Constraint, Text
from onestep.studies import Findings, Verdict
from onestep.studies._arms import (
    CHOICES,
    COLLAPSE,
    UNDECIDED,
    Pair,
    StudyOfArms,
    Trainings,
    arrays_of,
    check_arms,
    crossings,
    decided,
    finite,
    gap,
    mean_curve,
    spread,
)
from onestep.studies._arms_figure import draw_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["InstanceLosses"]

_FACTOR = 1.5  # of the last value of the first arm of a pair, for the threshold


@dataclass(frozen=True, kw_only=True)
class InstanceLosses(StudyOfArms):
    """Panel A: instance losses alone, such as CD and frozen CD. Panel B: pairs of arms without and with such a loss.

    Attributes:
        arms: By label, the runs of each arm, one for each training seed; those of a pair in the same order of seeds.
        alone: Labels of panel A: an arm, and the same one frozen.
        pairs: Labels of panel B: an arm, and the same one with the added loss. The first pair has the verdict.
        stated: Choices of the config, one sentence each, such as how learning rates were chosen.
    """

    question: ClassVar[str] = (
        "An instance loss that is added to a GAN loss slows early convergence and improves nothing in the end."
    )
    rule: ClassVar[str] = (
        "Of the first pair. The ratio of a training seed is the images until the value is at most "
        f"{_FACTOR} times the mean last value of the arm without the added loss, with it divided by without it. The "
        "gain is the difference of the mean last values, without minus with it, in units of its deviation over "
        "training seeds. Contradicted: all ratios are below 1, or the gain is above 2. Confirmed: all ratios are "
        f"above 1, and the gain is at most 2. Not confirmed: otherwise. {UNDECIDED} Panel A has no verdict. A training "
        f"has collapsed if {COLLAPSE}."
    )

    alone: Pair
    pairs: Annotated[tuple[Pair, ...], Constraint(min_length=1)]
    stated: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        check_arms(self.arms, named=[*self.alone, *(label for pair in self.pairs for label in pair)])
        for one, other in self.pairs:
            if len(self.arms[one]) != len(self.arms[other]):
                found = f"got {len(self.arms[one])} runs of {one} and {len(self.arms[other])} of {other}"
                raise ValueError(f"pairs: {found}, expected one of each for each training seed")

    @property
    def choices(self) -> tuple[str, ...]:
        """Choices of every study of arms, of this one and of its config."""
        own = (
            "The claim of the paper has no numbers: threshold and rule are choices of this project.",
            "The threshold of a pair is the same for all training seeds, from the mean last value without the loss.",
            "The instance loss is a mean over images, beside a GAN loss with the scale of its `rows_per_rank`.",
            "No direction is known of freezing in panel A: curves and their crossings are reported.",
        )
        return (*CHOICES, *own, *self.stated)

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return the curves, the images until the thresholds, the ratios and gains of the pairs, and the crossings."""
        found = self.trainings(files)
        pairs = {f"{other} / {one}": _compared(found, one, other) for one, other in self.pairs}
        numbers = found.numbers(value=self.value)
        for name, pair in pairs.items():
            numbers |= finite(pair.numbers(name))
        one, other = (mean_curve(found.curves[label]) for label in self.alone)
        crossed = crossings(one, other)
        numbers |= {f"{self.alone[1]} / {self.alone[0]}.crossings": len(crossed)}
        numbers |= {f"{self.alone[1]} / {self.alone[0]}.crossing.{n}": at for n, at in enumerate(crossed, start=1)}
        control = {key: value for name, pair in pairs.items() for key, value in pair.control(name)}
        decisive, first = self.pairs[0], next(iter(pairs.values()))
        return Findings(
            arrays=arrays_of(found.curves, value=self.value),
            numbers=numbers,
            control=finite(control),
            verdict=decided({label: self.arms[label] for label in decisive}, first.verdict),
            draw=functools.partial(_draw, study=self, found=found, threshold=first.threshold),
        )


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """A pair of arms.

    Attributes:
        without: The images until `threshold` of each training without the added loss; infinite where it is never met.
        added: The same with it.
        gain: See the rule; None for fewer than two training seeds.
    """

    threshold: float
    without: tuple[float, ...]
    added: tuple[float, ...]
    gain: float | None

    @property
    def ratios(self) -> list[float]:
        """With the added loss by without it; NaN where neither training meets the threshold."""
        pairs = zip(self.added, self.without, strict=True)
        return [math.nan if math.inf == a == b else a / b for a, b in pairs]

    @property
    def verdict(self) -> Verdict:
        """By the rule, whatever the number of training seeds."""
        if all(ratio < 1 for ratio in self.ratios) or (self.gain is not None and self.gain > 2):
            return "contradicted"
        return "confirmed" if all(ratio > 1 for ratio in self.ratios) else "not confirmed"

    def numbers(self, name: str) -> dict[str, float | None]:
        """Return threshold, images until it, ratios and gain."""
        ratios = {f"{name}.ratio.{n}": ratio for n, ratio in enumerate(self.ratios, start=1)}
        return {f"{name}.threshold": self.threshold, f"{name}.images": _mean(self.added), **ratios} | {
            f"{name}.gain": self.gain
        }

    def control(self, name: str) -> Iterator[tuple[str, float]]:
        """Yield the images without the added loss, and the largest ratio between two such trainings."""
        yield f"{name}.images", _mean(self.without)
        yield f"{name}.ratio.1", max(self.without) / min(self.without)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _compared(found: Trainings, one: str, other: str) -> _Comparison:
    last = spread(found.last(one)).mean
    threshold = _FACTOR * last
    without, added = (tuple(each.images_until(threshold) for each in found.curves[label]) for label in (one, other))
    return _Comparison(threshold=threshold, without=without, added=added, gain=gap(found.last(one), found.last(other)))


def _draw(figure: Figure, *, study: InstanceLosses, found: Trainings, threshold: float) -> None:
    figure.set_size_inches(8.4, 3.2)
    left, right = figure.subplots(1, 2)
    label = f"{study.metric}.{study.value}"
    draw_curves(left, {name: found.curves[name] for name in study.alone}, label=label)
    left.set_title("A: instance losses alone")
    names = dict.fromkeys(name for pair in study.pairs for name in pair)
    level = {f"{_FACTOR} x last of {study.pairs[0][0]}": threshold}
    draw_curves(right, {name: found.curves[name] for name in names}, label=label, levels=level)
    right.set_title("B: added to a GAN loss")
