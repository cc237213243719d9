"""Does the order of methods depend on the features they are measured in, and on those they were trained on?"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from onestep.config.constraints import Constraint, MetricValue, Text
from onestep.studies import Findings, Observable, Verdict
from onestep.studies._arms import (
    CHOICES,
    UNDECIDED,
    Curves,
    arrays_of,
    check_arms,
    decided,
    described,
    finite,
    gap,
    read_curves,
    spearman,
    spread,
)
from onestep.studies._arms_figure import line
from onestep.studies._methods import StudyOfMethods, metrics_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["OrderOfMethods"]

Lasts = Mapping[str, Mapping[str, tuple[float, ...]]]
"""By representation and label, the last value of each training."""


@dataclass(frozen=True, kw_only=True)
class OrderOfMethods(StudyOfMethods):
    """Methods, each measured in several representations: feature networks, or statistics of pixels.

    Attributes:
        representations: By name, a value as `metric.value`, of which lower is better. `metric` and `value` are one.
        trained_on: By label, the representations that the method was trained on.
        stated: Choices of the config, one sentence each.
    """

    question: ClassVar[str] = "The order of methods changes with the features in which they are measured."
    rule: ClassVar[str] = (
        "The gap of two methods is the difference of their mean last values, in units of its deviation over training "
        "seeds. Confirmed: for two methods it is above 2 in one representation and below -2 in another. Contradicted: "
        "the mean last values have the same order in all representations. Not confirmed: otherwise. "
        f"{UNDECIDED}"
    )

    representations: Annotated[Mapping[Text, MetricValue], Constraint(min_length=2)]
    trained_on: Mapping[Text, tuple[Text, ...]] | None = None
    stated: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        check_arms(self.arms, named=(*(self.trained_on or {}), *(self.samplers or {})))
        if len(self.arms) < 2:
            raise ValueError(f"arms: got {', '.join(self.arms)}, expected at least two methods")
        for label, names in (self.trained_on or {}).items():
            if other := next((name for name in names if name not in self.representations), None):
                known = ", ".join(self.representations)
                raise ValueError(f"trained_on.{label}: got {other!r}, expected some of the representations {known}")

    @property
    def choices(self) -> tuple[str, ...]:
        """Choices of every study of arms, of this one and of its config."""
        own = (
            "Of all pairs of methods and of representations the most different ones count, which favours the claim.",
            "Values of a representation are divided by their geometric mean over the methods.",
            "A representation flatters a method by the ratio of this value in it and its mean in those that no method "
            "was trained on; the control is the mean ratio of the methods that were not trained on it.",
        )
        return (*CHOICES, *own, *self.stated)

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot in each representation, and the logs."""
        return self.observes_metrics(metrics_of([self.measured, *self.representations.values()]))

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return values and ranks of each method by representation, rank correlations, and how far each flatters."""
        curves = {name: self._curves(files, source) for name, source in self.representations.items()}
        lasts = {
            name: {label: tuple(each.last for each in group) for label, group in by_label.items()}
            for name, by_label in curves.items()
        }
        ranks = {name: self._ranks(values) for name, values in lasts.items()}
        numbers: dict[str, float | None] = {}
        for name, label in itertools.product(self.representations, self.arms):
            numbers |= described(f"{label}.{name}", spread(lasts[name][label]))
            numbers[f"{label}.{name}.rank"] = ranks[name][label]
        for one, other in itertools.combinations(self.representations, 2):
            numbers[f"{one} and {other}.rank correlation"] = spearman(
                *([ranks[each][label] for label in self.arms] for each in (one, other))
            )
        flattery, control = self._flattery(lasts)
        arrays: dict[str, np.ndarray] = {}
        for name, by_label in curves.items():
            arrays |= {f"{name}.{key}": value for key, value in arrays_of(by_label, value="value").items()}
        return Findings(
            arrays=arrays,
            numbers=finite(numbers | flattery),
            control=finite(control),
            verdict=self._verdict(lasts),
            draw=lambda figure: self._draw(figure, ranks, flattery=flattery, control=control),
        )

    def _curves(self, files: Mapping[str, Sequence[Path]], source: str) -> Curves:
        metric, _, value = source.partition(".")
        return read_curves(self.arms, files, metric=metric, value=value, seeds=self.seeds)

    def _ranks(self, lasts: Mapping[str, tuple[float, ...]]) -> dict[str, int]:
        order = sorted(self.arms, key=lambda label: statistics.fmean(lasts[label]))
        return {label: order.index(label) + 1 for label in self.arms}

    def _flattery(self, lasts: Lasts) -> tuple[dict[str, float], dict[str, float]]:
        """Return the ratio of seen and unseen for each method and representation it was trained on, and of others."""
        trained = self.trained_on or {}
        seen = {name for names in trained.values() for name in names}
        unseen = [name for name in self.representations if name not in seen]
        if not unseen:
            return {}, {}
        level = {name: statistics.geometric_mean(map(statistics.fmean, lasts[name].values())) for name in lasts}
        relative = {
            name: {label: statistics.fmean(values) / level[name] for label, values in by_label.items()}
            for name, by_label in lasts.items()
        }
        found, control = dict[str, float](), dict[str, float]()
        for name in [each for each in self.representations if each in seen]:
            ratios = {
                label: relative[name][label] / statistics.fmean(relative[each][label] for each in unseen)
                for label in self.arms
            }
            others = [ratio for label, ratio in ratios.items() if name not in trained.get(label, ())]
            for label in [each for each in self.arms if name in trained.get(each, ())]:
                found[f"{label}.{name} to unseen"] = ratios[label]
                if others:
                    control[f"{label}.{name} to unseen"] = statistics.fmean(others)
        return found, control

    def _verdict(self, lasts: Lasts) -> Verdict:
        changes = False
        orders = [sorted(self.arms, key=lambda label: statistics.fmean(values[label])) for values in lasts.values()]
        is_same = all(order == orders[0] for order in orders)
        for one, other in itertools.combinations(self.arms, 2):
            gaps = [each for values in lasts.values() if (each := gap(values[one], values[other])) is not None]
            if len(gaps) < len(lasts):
                return "undecided"
            changes = changes or (max(gaps) > 2 and min(gaps) < -2)
        if changes:
            return decided(self.arms, "confirmed")
        return decided(self.arms, "contradicted" if is_same else "not confirmed")

    def _draw(
        self,
        figure: Figure,
        ranks: Mapping[str, Mapping[str, int]],
        *,
        flattery: Mapping[str, float],
        control: Mapping[str, float],
    ) -> None:
        """Draw the ranks of each method, and how far representations flatter those that were trained on them."""
        if not flattery:
            self._draw_ranks(figure.add_subplot(), ranks)
            return
        figure.set_size_inches(7.2, 3.2)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        self._draw_ranks(left, ranks)
        _draw_flattery(right, flattery, control)

    def _draw_ranks(self, axes: Axes, ranks: Mapping[str, Mapping[str, int]]) -> None:
        """Draw the rank of each method over the representations; a ring where it was trained on one."""
        names = list(self.representations)
        for index, label in enumerate(self.arms):
            places = [ranks[name][label] for name in names]
            axes.plot(range(len(names)), places, markersize=4, linewidth=1, **line(index))
            axes.annotate(label, (len(names) - 1, places[-1]), xytext=(6, -2), textcoords="offset points", fontsize=6)
            rings = [place for place, name in enumerate(names) if name in (self.trained_on or {}).get(label, ())]
            axes.scatter(rings, [places[each] for each in rings], s=80, facecolors="none", edgecolors="k", zorder=3)
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axes.set_xlim(-0.3, len(names) - 0.2)
        axes.set_ylim(len(self.arms) + 0.5, 0.5)
        axes.set_ylabel("rank, 1 is the best")


def _draw_flattery(axes: Axes, flattery: Mapping[str, float], control: Mapping[str, float]) -> None:
    """Draw seen over unseen of each method beside that of the methods that were not trained on the representation."""
    from matplotlib.ticker import NullLocator

    names = list(flattery)
    places = range(len(names))
    axes.barh(places, [flattery[name] for name in names], height=0.5, color="C0", label="trained on it")
    known = [(control[name], place) for place, name in enumerate(names) if name in control]
    if known:
        axes.plot(*zip(*known, strict=True), linestyle="none", marker="D", color="k", markersize=3.5, label="others")
    axes.axvline(1.0, color="0.5", linewidth=1, linestyle="--")
    axes.set_yticks(places, [name.removesuffix(" to unseen").replace(".", ", ", 1) for name in names])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.invert_yaxis()
    axes.set_xlabel("seen / unseen, relative")
    axes.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
