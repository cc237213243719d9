"""Do density ratios replace the scores of a teacher? (DiffRatio, arXiv:2502.08005)."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onestep import components
from onestep.config.constraints import Constraint, MetricValue, Name, Text
from onestep.records import differing, read_measurement, read_run_config, read_summary, value_of
from onestep.studies import Configuration, Findings, Measurements, Observable, Summary
from onestep.studies._arms import (
    CHOICES,
    COLLAPSE,
    UNDECIDED,
    Trainings,
    arrays_of,
    check_arms,
    described,
    finite,
    gap,
    read_curves,
    spread,
)
from onestep.studies._arms_figure import bar_below, counted, draw_curves, few_ticks, legend_below, look
from onestep.studies._methods import StudyOfMethods, expect_equal_images, match, metrics_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["ScoreFree"]

_FACTOR = 1.5  # of the last value of the decisive score arm, for the threshold


@dataclass(frozen=True, kw_only=True)
class ScoreFree(StudyOfMethods):
    """Arms trained by density ratios, by differences of scores, and by a GAN loss, and the teacher.

    Attributes:
        ratio: Labels of the arms that are trained by a density ratio.
        score: Label of the arm that is trained by the difference of scores and has the verdict: Diff-Instruct.
        teacher: The teacher, which is shown beside the arms.
        teacher_sampler: Its sampler.
        beside: Further values as `metric.value`, of which higher is better, such as `is.inception_score`.
        stated: Choices of the config, one sentence each.
    """

    question: ClassVar[str] = (
        "A generator that is trained by a density ratio is as good as one that is trained by a teacher's scores."
    )
    rule: ClassVar[str] = (
        "The gap of a ratio arm is the difference of its mean last value and that of the score arm, in units of its "
        "deviation over training seeds, after equal images. Confirmed: that of the ratio arm with the least mean last "
        "value is at most 2. Contradicted: those of all ratio arms are above 2. Not confirmed: otherwise. "
        f"{UNDECIDED} The images until a threshold are beside the last values and do not decide: it is {_FACTOR} times "
        f"the mean last value of the score arm. A training has collapsed if {COLLAPSE}."
    )

    ratio: Annotated[tuple[Text, ...], Constraint(min_length=1)]
    score: Text
    teacher: str | None = None
    teacher_sampler: Name | None = None
    beside: tuple[MetricValue, ...] = ()
    stated: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        check_arms(self.arms, named=(self.score, *self.ratio, *(self.samplers or {})))
        if self.score in self.ratio:
            raise ValueError(f"ratio: got {self.score!r}, the label of the score arm, expected others")
        if (self.teacher is None) != (self.teacher_sampler is None):
            raise ValueError("teacher and teacher_sampler: got one of them, expected both or neither")

    @property
    def choices(self) -> tuple[str, ...]:
        """Choices of every study of arms, of this one and of its config."""
        own = (
            "The paper's settings are not public: networks, noise levels, weights and update ratios are ours.",
            "The best of several ratio arms is compared with one score arm, which favours the claim.",
            "Images are those of the batches: a generator that is updated at each k-th step has as many as the others.",
            "Auxiliary parameters are those of all networks but the generator, frozen ones included.",
            "Updates are steps of the auxiliary networks for one of the generator, penalties not counted.",
            "Memory is the peak of a training: what is allocated on a CUDA device, on a CPU the whole process.",
            "Seconds are those of whole trainings on the machine at hand, whatever else it computed.",
        )
        return (*CHOICES, *own, *self.stated)

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot and of the teacher, logs, configurations and facts of the runs."""
        found = self.observes_metrics(self._metrics())
        for run in self.runs:
            found |= {f"run.{run}": Configuration(run=run), f"summary.{run}": Summary(run=run)}
        if self.teacher is not None and self.teacher_sampler is not None:
            for metric in self._metrics():
                found[f"{metric} of the teacher"] = Measurements(
                    model=self.teacher, sampler=self.teacher_sampler, seeds=tuple(self.seeds), metric=metric
                )
        return found

    @property
    def _shown(self) -> tuple[str, ...]:
        """The values that are shown, as `metric.value`: that of the verdict, the recall, and those beside."""
        return (self.measured, *(() if self.recall is None else (self.recall,)), *self.beside)

    def _metrics(self) -> list[str]:
        return metrics_of(self._shown)

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return values, images until the threshold and what a training costs by arm, and the gaps of the rule."""
        found = self.trainings(files)
        expect_equal_images(found, self.ratio, of=self.score)
        threshold = _FACTOR * statistics.fmean(found.last(self.score))
        costs = {label: self._costs(found, files, runs=runs) for label, runs in self.arms.items()}
        numbers: dict[str, float | None] = {**found.numbers(value=self.value), "threshold": threshold}
        numbers |= {f"{label}.gap": gap(found.last(label), found.last(self.score)) for label in self.ratio}
        for label, curves in found.curves.items():
            until = [each.images_until(threshold) for each in curves]
            numbers |= {f"{label}.images": curves[0].images[-1], f"{label}.reached": sum(map(math.isfinite, until))}
            if all(map(math.isfinite, until)):
                numbers |= described(f"{label}.images_until", spread(until))
        for name in self._shown[1:]:
            metric, _, value = name.partition(".")
            higher = read_curves(self.arms, files, metric=metric, value=value, seeds=self.seeds, better="higher")
            for label, curves in higher.items():
                numbers |= described(f"{label}.{value}.last", spread(each.last for each in curves))
        for label, by_cost in costs.items():
            for cost, values in by_cost.items():
                numbers |= described(f"{label}.{cost}", spread(values))
        numbers |= {f"teacher.{value}": number for value, number in self._of_the_teacher(files).items()}
        return Findings(
            arrays=arrays_of(found.curves, value=self.value) | _arrays(costs),
            numbers=finite(numbers),
            control=self._control(finite(numbers)),
            verdict=match(found, self.ratio, of=self.score, arms=self.arms),
            draw=functools.partial(_draw, study=self, found=found, costs=costs, numbers=numbers),
        )

    def _costs(
        self, found: Trainings, files: Mapping[str, Sequence[Path]], *, runs: Sequence[str]
    ) -> dict[str, list[float]]:
        """Return what each training of an arm took, by name, as far as all of them have recorded it."""
        trained: list[dict[str, float]] = []
        for run in runs:
            (path,), (config,) = files[f"summary.{run}"], files[f"run.{run}"]
            summary = read_summary(path, run=run, keys=("parameters", "seconds", "images_seen"))
            costs = {"seconds_per_1000_images": 1_000 * summary["seconds"] / summary["images_seen"]}
            if (networks := summary.get("networks")) is not None:
                costs["auxiliary_parameters"] = sum(networks.values()) - summary["parameters"]
            peaks = [each["memory_mib"] for each in found.logs[run] if each.get("memory_mib") is not None]
            costs |= {"memory_mib": max(peaks)} if peaks else {}
            updates = _updates(read_run_config(config, run=run)[1]["objective"])
            costs |= {} if updates is None else {"updates": updates}
            trained.append(costs)
        known = [cost for cost in trained[0] if all(cost in each for each in trained)]
        return {cost: [each[cost] for each in trained] for cost in known}

    def _of_the_teacher(self, files: Mapping[str, Sequence[Path]]) -> dict[str, float]:
        """Return the mean over seed blocks of each shown value; nothing without a teacher."""
        found: dict[str, float] = {}
        for name in self._shown if self.teacher is not None else ():
            metric, _, value = name.partition(".")
            first = files[f"{metric}.{self.runs[0]}"][0]
            values = []
            for path in files[f"{metric} of the teacher"]:
                record = read_measurement(path)
                if facts := differing(read_measurement(first), record):
                    raise ValueError(f"{path}: {facts[0]} differs from {first}. Fix: delete the outdated one")
                values.append(value_of(record, path=path, value=value))
            found[value] = statistics.fmean(values)
        return found

    def _control(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return for each quantity of each other arm that of the score arm."""
        before = f"{self.score}."
        own = {name.removeprefix(before): number for name, number in numbers.items() if name.startswith(before)}
        pairs = {f"{label}.{name}": own[name] for label in self.arms if label != self.score for name in own}
        return {name: each for name, each in pairs.items() if name in numbers and not name.endswith(".deviation")}


def _updates(objective: Mapping[str, Any]) -> float | None:
    """Return the steps of an objective's auxiliary networks for one of its generator; None if it trains no other."""
    built = components.build("objectives", objective)
    phases = [phase for phase in built.phases() if not phase.lazy_regularizer]
    own = [phase.every for phase in phases if phase.trains == built.publishes]
    others = [phase.every for phase in phases if phase.trains != built.publishes]
    return min(own) / min(others) if own and others else None


def _arrays(costs: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, np.ndarray]:
    import numpy as np

    return {
        f"{label}.{cost}": np.array(values, dtype=np.float64)
        for label, by_cost in costs.items()
        for cost, values in by_cost.items()
    }


def _draw(
    figure: Figure,
    *,
    study: ScoreFree,
    found: Trainings,
    costs: Mapping[str, Mapping[str, Sequence[float]]],
    numbers: Mapping[str, float | None],
) -> None:
    """Draw the value over images, and where the sizes are known the last value over auxiliary parameters."""
    sizes = {label: each["auxiliary_parameters"][0] for label, each in costs.items() if "auxiliary_parameters" in each}
    sizes = {label: size for label, size in sizes.items() if size > 0}
    figure.set_size_inches(8.4 if sizes else 4.6, 4.0)
    panels = figure.subplots(1, 2 if sizes else 1, squeeze=False)[0]
    of_the_teacher = numbers.get(f"teacher.{study.value}")
    levels = {} if of_the_teacher is None else {f"{study.teacher}, {study.teacher_sampler}": of_the_teacher}
    draw_curves(panels[0], found.curves, label=study.measured, levels=levels)
    legend_below(figure, panels[0], columns=4 if sizes else 2)
    if not sizes:
        return
    drawn: list[float] = []
    for index, label in enumerate(found.curves):
        if label in sizes:
            last, beside = spread(found.last(label)), 1.03 ** drawn.count(sizes[label])  # of arms of one size
            drawn.append(sizes[label])
            panels[1].errorbar(
                [beside * sizes[label]], [last.mean], yerr=[bar_below(last)], markersize=4, capsize=1.5, **look(index)
            )
    panels[1].set_xscale("log")
    panels[1].set_yscale("log")
    few_ticks(panels[1].xaxis, list(sizes.values()), shown=counted)
    few_ticks(panels[1].yaxis, [value for label in sizes for value in found.last(label)])
    panels[1].set_xlabel("auxiliary parameters")
    panels[1].set_ylabel(f"last {study.measured}")
