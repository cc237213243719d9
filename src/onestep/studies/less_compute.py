"""What do methods compute to reach the same distance, counted and measured? No paper compares them so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onestep.config.constraints import Constraint, Text
from onestep.records import read_work
from onestep.studies import Findings, Observable, Summary, Verdict, Work
from onestep.studies._arms import (
    CHOICES,
    UNDECIDED,
    Curve,
    Curves,
    Trainings,
    arrays_of,
    check_arms,
    decided,
    described,
    finite,
    spearman,
    spread,
)
from onestep.studies._arms_figure import draw_curves, legend_below
from onestep.studies._methods import StudyOfMethods, seconds_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["LessCompute"]

Works = Mapping[str, tuple[Mapping[str, Any], ...]]
"""By label, what each training computes; see `onestep.records.read_work`."""


@dataclass(frozen=True, kw_only=True)
class LessCompute(StudyOfMethods):
    """Methods by the operations that they need until the distance that D2O has at its end.

    Attributes:
        gan: Label of the arm whose distance is to be reached: D2O.
        without: Labels of the arms whose losses have no discriminator.
        stated: Choices of the config, one sentence each.
    """

    question: ClassVar[str] = "A method without a GAN reaches D2O's distance with less compute."
    rule: ClassVar[str] = (
        "The compute of a training is the counted operations until its value is at most the mean last value of D2O, "
        "infinite if it never is; that of a training of D2O which never is counts whole. Confirmed: for one of the "
        "arms without a discriminator that of each training is below that of each training of D2O. Contradicted: for "
        "all of them that of each training is above that of each training of D2O. Not confirmed: otherwise. "
        f"{UNDECIDED}"
    )

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
            "Operations are two for each multiply-add of products, convolutions and attention, and those of "
            "decompositions of matrices; they include what a method computes before its first step, and nothing that "
            "trained the teacher or a feature network.",
            "Passes are in units of a forward pass: backward is two to the parameters of a network, one to its input "
            "alone, and the encoder of a denoiser is half of it.",
            "The control is the measured time: seconds of whole trainings on the machine at hand, whatever else it "
            "computed.",
            "The best of several arms is compared with one GAN, which favours the claim.",
        )
        return (*CHOICES, *own, *self.stated)

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot, the logs, the facts of the runs, and what each computes."""
        found = self.observes_metrics([self.metric])
        for run in self.runs:
            found |= {f"summary.{run}": Summary(run=run), f"work.{run}": Work(run=run)}
        return found

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return cost of each arm, counted and measured, relative to D2O and until its distance."""
        found = self.trainings(files)
        works = {
            label: tuple(read_work(path, run=run) for run in runs for path in files[f"work.{run}"])
            for label, runs in self.arms.items()
        }
        seconds = {label: seconds_of(files, runs) for label, runs in self.arms.items()}
        compute = {label: self._until(found, label, per_image=_gflop(works[label])) for label in self.arms}
        time = {
            label: self._until(found, label, per_image=[(0.0, each / 1_000) for each in seconds[label]])
            for label in self.arms
        }
        numbers: dict[str, float | None] = {**found.numbers(value=self.value)}
        control: dict[str, float | None] = {}
        cost = {label: statistics.fmean(each["flops_per_image"] for each in works[label]) for label in self.arms}
        for label, runs in self.arms.items():
            for kind, count in works[label][0]["passes_per_image"].items():
                numbers[f"{label}.{kind} passes"] = count
            numbers[f"{label}.GFLOP per image"] = cost[label] / 1e9
            numbers |= described(f"{label}.seconds_per_1000_images", spread(seconds[label]))
            peaks = [each["memory_mib"] for run in runs for each in found.logs[run] if each.get("memory_mib")]
            numbers[f"{label}.peak_mib"] = max(peaks, default=None)
            numbers[f"{label}.reached"] = sum(map(math.isfinite, compute[label]))
            numbers[f"{label}.GFLOP until"] = statistics.fmean(compute[label])
            control[f"{label}.seconds until"] = statistics.fmean(time[label])
            for key, one, other in (
                ("cost", {each: [cost[each]] for each in self.arms}, seconds),
                ("cost until", compute, time),
            ):
                numbers[f"{label}.relative {key}"] = _ratio(one, label, self.gan)
                control[f"{label}.relative {key}"] = _ratio(other, label, self.gan)
        measured = [statistics.fmean(seconds[label]) for label in self.arms]
        passes = [works[label][0]["passes_per_image"].get("denoiser", 0.0) for label in self.arms]
        numbers["rank correlation of GFLOP and seconds"] = spearman([cost[label] for label in self.arms], measured)
        numbers["rank correlation of denoiser passes and seconds"] = spearman(passes, measured)
        across = {label: _over_gflop(found.curves[label], works[label]) for label in self.arms}
        return Findings(
            arrays=self._arrays(found, across),
            numbers=finite(numbers),
            control=finite(control),
            verdict=self._verdict(compute),
            draw=lambda figure: self._draw(figure, found.curves, across),
        )

    def _until(self, found: Trainings, label: str, *, per_image: Sequence[tuple[float, float]]) -> list[float]:
        """Return the cost of each training until D2O's distance, of one before the first image and one per image."""
        threshold, costs = statistics.fmean(found.last(self.gan)), []
        for curve, (start, each) in zip(found.curves[label], per_image, strict=True):
            images = curve.images_until(threshold)
            if label == self.gan:
                images = min(images, curve.images[-1])
            costs.append(start + images * each)
        return costs

    def _verdict(self, compute: Mapping[str, Sequence[float]]) -> Verdict:
        own = compute[self.gan]
        decisive = {label: self.arms[label] for label in (self.gan, *self.without)}
        if any(max(compute[label]) < min(own) for label in self.without):
            return decided(decisive, "confirmed")
        none = all(min(compute[label]) > max(own) for label in self.without)
        return decided(decisive, "contradicted" if none else "not confirmed")

    def _arrays(self, found: Trainings, across: Curves) -> dict[str, np.ndarray]:
        import numpy as np

        arrays = arrays_of(found.curves, value=self.value)
        for label, group in across.items():
            arrays[f"{label}.gflop"] = np.array([each.images for each in group], dtype=np.int64)
        return arrays

    def _draw(self, figure: Figure, curves: Curves, across: Curves) -> None:
        """Draw the distance against images and against operations."""
        figure.set_size_inches(7.2, 3.2)
        left, right = figure.subplots(1, 2, sharey=True)
        draw_curves(left, curves, label=self.measured)
        draw_curves(right, across, label="", across="GFLOP")
        right.get_legend().remove()
        legend_below(figure, left, columns=5)


def _gflop(works: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return GFLOP before the first image, and per image, of each training."""
    return [(each["flops_before_the_first_step"] / 1e9, each["flops_per_image"] / 1e9) for each in works]


def _over_gflop(curves: Sequence[Curve], works: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """Return the curves of an arm over whole GFLOP in the place of images."""
    costs = zip(curves, _gflop(works), strict=True)
    return tuple(
        replace(curve, images=tuple(max(1, round(start + n * each)) for n in curve.images))
        for curve, (start, each) in costs
    )


def _ratio(costs: Mapping[str, Sequence[float]], label: str, other: str) -> float:
    return statistics.fmean(costs[label]) / statistics.fmean(costs[other])
