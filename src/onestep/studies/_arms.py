"""What studies share that compare arms: trainings that differ in one thing, each repeated over training seeds.

The option `arms` of such a study names the runs of each arm, one for each training seed; in config.yaml a family of
runs or a pattern in place of a list. Seed blocks measure the noise of sampling and are averaged first; the deviation
of an arm is that over its trainings.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from onestep.config.constraints import Constraint, MetricValue, Name, RunName, SeedBlock, Text
from onestep.models import Snapshot, parse_model
from onestep.records import differing, iter_log, read_measurement
from onestep.studies import Log, Observable, SnapshotMeasurements, Verdict

if TYPE_CHECKING:
    import numpy as np

LEAST_SEEDS = 3
"""Trainings of an arm that a verdict needs."""

Runs = Annotated[tuple[RunName, ...], Constraint(min_length=1)]
Arms = Annotated[Mapping[Text, Runs], Constraint(min_length=1)]
"""The option `arms`: by label, the runs of an arm, one for each training seed."""
Pair = Annotated[tuple[Text, ...], Constraint(min_length=2, max_length=2)]
"""Labels of two arms that are compared."""

UNDECIDED = f"Undecided: an arm with fewer than {LEAST_SEEDS} training seeds."
"""The part of a rule that `decided` computes."""

COLLAPSE = "its last value is above 3 times its least value so far, its recall is below 0.1, or a loss is not finite"
"""When a training has collapsed, for the rule of a study; see `collapse_of`."""

CHOICES = (
    "The deviation of an arm is that over its training seeds, of the mean over the seed blocks of each training.",
    "Images until a threshold are read off the line between two snapshots, on logarithmic axes.",
)
"""Choices of every study of arms."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value of one training at each of its snapshots; lower is better.

    Attributes:
        images: Images seen, ascending.
        blocks: For each of `images`, the value of each seed block.
    """

    run: str
    images: tuple[int, ...]
    blocks: tuple[tuple[float, ...], ...]

    @property
    def means(self) -> tuple[float, ...]:
        """The mean over the seed blocks at each of `images`."""
        return tuple(map(statistics.fmean, self.blocks))

    @property
    def last(self) -> float:
        """The mean at the end."""
        return self.means[-1]

    @property
    def best(self) -> float:
        """The least mean."""
        return min(self.means)

    def images_until(self, threshold: float) -> float:
        """Return the images until the mean is at most `threshold`; infinity if it never is."""
        points = list(zip(self.images, self.means, strict=True))
        if points[0][1] <= threshold:
            return float(points[0][0])
        for (before, high), (after, low) in itertools.pairwise(points):
            if low <= threshold:
                return _between(before, after, share=_share(high, low, threshold))
        return math.inf


Curves = Mapping[str, tuple[Curve, ...]]
"""By label, the curves of an arm, one for each training."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation over training seeds; no deviation for fewer than two."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]


def spread(values: Iterable[float]) -> Spread:
    """Return mean and deviation of at least one value."""
    found = tuple(values)
    deviation = statistics.stdev(found) if len(found) > 1 else None
    return Spread(mean=statistics.fmean(found), deviation=deviation, values=found)


def check_arms(arms: Mapping[str, Sequence[str]], *, named: Iterable[str] = ()) -> None:
    """Refuse arms that lack one of `named`, which other options refer to, and a run twice in an arm."""
    for label in named:
        if label not in arms:
            raise ValueError(f"arms: got {', '.join(arms)}, expected one of the label {label!r}")
    for label, runs in arms.items():
        if "/" in label:
            raise ValueError(f"arms: got the label {label!r}, expected one without a slash")
        if twice := next((run for run in runs if list(runs).count(run) > 1), None):
            raise ValueError(f"arms.{label}: got {twice} twice, expected one run for each training seed")


def observe(
    arms: Mapping[str, Sequence[str]],
    *,
    sampler: str | Mapping[str, str],
    seeds: Sequence[str],
    metrics: Iterable[str],
    logs: bool = False,
) -> dict[str, Observable]:
    """Return what a study of arms reads: each metric of each snapshot of each run, and the logs.

    `sampler` is one for all, or one for each label.
    """
    found: dict[str, Observable] = {}
    for label, run in _members(arms):
        chosen = sampler if isinstance(sampler, str) else sampler[label]
        for metric in metrics:
            found[f"{metric}.{run}"] = SnapshotMeasurements(run=run, sampler=chosen, seeds=tuple(seeds), metric=metric)
        if logs:
            found[f"log.{run}"] = Log(run=run)
    return found


def _members(arms: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    return ((label, run) for label, runs in arms.items() for run in runs)


def read_curves(
    arms: Mapping[str, Sequence[str]],
    files: Mapping[str, Sequence[Path]],
    *,
    metric: str,
    value: str,
    seeds: Sequence[str],
    better: str = "lower",
) -> dict[str, tuple[Curve, ...]]:
    """Return the curves of each arm from the files of `observe`, of a value of which `lower` or `higher` is better.

    Raises:
        ValueError: A measurement lacks the value, is not comparable with the others, or one is missing, or the runs of
            an arm have other snapshots than each other.
    """
    records = {run: [(path, read_measurement(path)) for path in files[f"{metric}.{run}"]] for _, run in _members(arms)}
    everything = list(itertools.chain.from_iterable(records.values()))
    for path, record in everything:
        if value not in record["values"] or not {"model", "seeds"} <= record.keys():
            raise ValueError(f"{path}: got no {value!r} of a model, expected it. Fix: measure it again")
        if (found := record.get("better", {}).get(value, better)) != better:
            raise ValueError(f"value: got {value}, of which {found} is better, expected one of which {better} is")
        if facts := differing(everything[0][1], record):
            raise ValueError(f"{path}: {facts[0]} differs from {everything[0][0]}. Fix: delete the outdated one")
    curves = {
        label: tuple(_curve(run, records[run], metric=metric, value=value, seeds=seeds) for run in runs)
        for label, runs in arms.items()
    }
    for label, group in curves.items():
        if other := next((each for each in group if each.images != group[0].images), None):
            found = f"got snapshots of {other.run} at other images than of {group[0].run}"
            raise ValueError(f"arms.{label}: {found}, expected the same. Fix: give them the same length and snapshots")
    return curves


def _curve(
    run: str, records: Iterable[tuple[Path, Mapping[str, Any]]], *, metric: str, value: str, seeds: Sequence[str]
) -> Curve:
    points: dict[int, dict[str, float]] = {}
    for path, record in records:
        model = parse_model(record["model"])
        if not isinstance(model, Snapshot):
            raise ValueError(f"{path}: got numbers of {model}, expected a snapshot of {run}")
        points.setdefault(model.images, {})[record["seeds"]] = float(record["values"][value])
    lacking = next((each for point in points.values() for each in seeds if each not in point), None)
    if not points or lacking is not None:
        raise ValueError(f"{metric} of {run}: got no {lacking or 'measurement'}, expected {', '.join(seeds)} of each")
    images = tuple(sorted(points))
    return Curve(run=run, images=images, blocks=tuple(tuple(points[n][each] for each in seeds) for n in images))


def losses_are_finite(records: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether all losses of a log are finite; the log has None for one that is not."""
    return all(value is not None for record in records for value in record.get("losses", {}).values())


def collapse_of(curve: Curve, *, recall: float | None = None, finite: bool = True) -> str | None:
    """Return in a word why a training has collapsed: `rise`, `recall`, `loss`; None if it has not.

    `recall` is that of its last snapshot, None if it is not measured; `finite` whether all its losses are finite.
    """
    if not finite:
        return "loss"
    if curve.last > 3 * curve.best:
        return "rise"
    return "recall" if recall is not None and recall < 0.1 else None


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """What `StudyOfArms.trainings` reads.

    Attributes:
        collapses: By label, why each training has collapsed; None for one that has not. See `collapse_of`.
        logs: By run, the records of its log.
    """

    curves: Curves
    collapses: Mapping[str, tuple[str | None, ...]]
    logs: Mapping[str, list[dict[str, Any]]]

    def last(self, label: str) -> tuple[float, ...]:
        """Return the last value of each training of an arm."""
        return tuple(each.last for each in self.curves[label])

    def best(self, label: str) -> tuple[float, ...]:
        """Return the best value of each training of an arm."""
        return tuple(each.best for each in self.curves[label])

    def collapsed(self, label: str) -> int:
        """Return how many trainings of an arm have collapsed."""
        return sum(each is not None for each in self.collapses[label])

    def gaps(self, control: str) -> dict[str, float | None]:
        """Return the `gap` of the last values of each other arm to those of the control, as `{label}.gap`."""
        return {f"{each}.gap": gap(self.last(each), self.last(control)) for each in self.curves if each != control}

    def levels(self, control: str, *, value: str) -> dict[str, float]:
        """Return the mean last value of the control for each other arm, as `{label}.{value}.last`."""
        level = statistics.fmean(self.last(control))
        return {f"{each}.{value}.last": level for each in self.curves if each != control}

    def numbers(self, *, value: str) -> dict[str, float]:
        """Return last and best value of each arm, with deviation, and how many of its trainings collapsed, and why."""
        found = numbers_of(self.curves, value=value)
        for label, reasons in self.collapses.items():
            found[f"{label}.collapsed"] = self.collapsed(label)
            for reason in sorted({each for each in reasons if each is not None}):
                found[f"{label}.collapsed by {reason}"] = reasons.count(reason)
        return found


@dataclass(frozen=True, kw_only=True)
class StudyOfArms:
    """The options of a study that compares arms by a value of a metric, of which lower is better.

    Attributes:
        arms: By label, the runs of an arm, one for each training seed.
        value: Which value of the metric.
        seeds: Seed blocks.
        recall: The recall, as `metric.value`, for the rule of collapse; None if it is not measured.
    """

    arms: Arms
    sampler: Name
    metric: Name
    value: Name
    seeds: Annotated[tuple[SeedBlock, ...], Constraint(min_length=1)]
    recall: MetricValue | None = None

    @property
    def runs(self) -> list[str]:
        """The runs of all arms, each once."""
        return list(dict.fromkeys(run for _, run in _members(self.arms)))

    @property
    def measured(self) -> str:
        """The value with its metric, `fd.frechet`."""
        return f"{self.metric}.{self.value}"

    def observes(self) -> Mapping[str, Observable]:
        """Return what `trainings` reads: the metrics of each snapshot, and the logs."""
        recall = () if self.recall is None else (self.recall.partition(".")[0],)
        metrics = dict.fromkeys((self.metric, *recall))
        return observe(self.arms, sampler=self.sampler, seeds=self.seeds, metrics=metrics, logs=True)

    def trainings(self, files: Mapping[str, Sequence[Path]]) -> Trainings:
        """Return the curves and logs of each arm, and which trainings have collapsed. ValueError: As `read_curves`."""
        curves = read_curves(self.arms, files, metric=self.metric, value=self.value, seeds=self.seeds)
        recalls: dict[str, float] = {}
        if self.recall is not None:
            metric, _, value = self.recall.partition(".")
            found = read_curves(self.arms, files, metric=metric, value=value, seeds=self.seeds, better="higher")
            recalls = {each.run: each.last for group in found.values() for each in group}
        logs = {run: [each for path in files[f"log.{run}"] for each in iter_log(path)] for run in self.runs}
        collapses = {
            label: tuple(
                collapse_of(each, recall=recalls.get(each.run), finite=losses_are_finite(logs[each.run]))
                for each in group
            )
            for label, group in curves.items()
        }
        return Trainings(curves=curves, collapses=collapses, logs=logs)


def gap(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return mean(one) - mean(other) in units of its deviation, sqrt(s_one^2 + s_other^2), over training seeds.

    Infinite for a difference without any deviation; None for fewer than two values of either.
    """
    if min(len(one), len(other)) < 2:
        return None
    difference = statistics.fmean(one) - statistics.fmean(other)
    deviation = math.sqrt(statistics.variance(one) + statistics.variance(other))
    if deviation == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / deviation


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, with mean ranks for ties; None for fewer than two points or a constant."""
    import pandas as pd

    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return statistics.correlation(*(pd.Series(each, dtype=float).rank().tolist() for each in (x, y)))


def crossings(one: Curve, other: Curve) -> list[float]:
    """Return the images at which two curves cross, over the snapshots that both have, on logarithmic axes."""
    shared = [n for n in one.images if n in other.images]
    at_one, at_other = (dict(zip(each.images, each.means, strict=True)) for each in (one, other))
    found = []
    for before, after in itertools.pairwise(shared):
        start, end = (math.log(at_one[n] / at_other[n]) for n in (before, after))
        if start != 0 and (start < 0) != (end < 0):
            found.append(_between(before, after, share=start / (start - end)))
    return found


def _share(high: float, low: float, level: float) -> float:
    """Return where between two positive values a level is, from 0 at `high` to 1 at `low`, on a logarithmic axis."""
    if low <= 0:
        return (high - level) / (high - low)
    return math.log(high / level) / math.log(high / low)


def _between(before: float, after: float, *, share: float) -> float:
    if before == 0:  # the start, which has no place on a logarithmic axis
        return share * after
    return math.exp(math.log(before) + share * math.log(after / before))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the curve of an arm, with its trainings in place of seed blocks."""
    blocks = zip(*(each.means for each in curves), strict=True)
    return dataclasses.replace(curves[0], run=" ".join(each.run for each in curves), blocks=tuple(map(tuple, blocks)))


def decided(arms: Mapping[str, Sequence[Any]], verdict: Verdict) -> Verdict:
    """Return a verdict, or `undecided` where an arm has fewer training seeds than a verdict needs."""
    return "undecided" if any(len(runs) < LEAST_SEEDS for runs in arms.values()) else verdict


def arrays_of(curves: Curves, *, value: str) -> dict[str, np.ndarray]:
    """Return the data of a figure: `{label}.images_seen` [S] and `{label}.{value}` [trainings, S, seed blocks]."""
    import numpy as np

    found: dict[str, np.ndarray] = {}
    for label, group in curves.items():
        found[f"{label}.images_seen"] = np.array(group[0].images, dtype=np.int64)
        found[f"{label}.{value}"] = np.array([each.blocks for each in group], dtype=np.float64)
    return found


def numbers_of(curves: Curves, *, value: str) -> dict[str, float]:
    """Return last and best value of each arm, with the deviation over its training seeds and their number."""
    found: dict[str, float] = {}
    for label, group in curves.items():
        found[f"{label}.seeds"] = len(group)
        for kind in ("last", "best"):
            over = spread(getattr(each, kind) for each in group)
            found |= described(f"{label}.{value}.{kind}", over)
    return found


def described(name: str, over: Spread) -> dict[str, float]:
    """Return a mean under a name and its deviation, if there is one, under `{name}.deviation`."""
    return {name: over.mean} | ({} if over.deviation is None else {f"{name}.deviation": over.deviation})


def finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Return the numbers that are finite, which are those that the JSON of a study may have."""
    return {key: value for key, value in numbers.items() if value is not None and math.isfinite(value)}
