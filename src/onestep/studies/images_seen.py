"""A metric against images seen: does training improve the samples of a run? (D2O, arXiv:2506.09376, figure 1)."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onestep.models import Snapshot, parse_model
from onestep.records import differing, read_measurement
from onestep.studies import Findings, Measurements, Observable, SnapshotMeasurements, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ImagesSeen"]

_CONTROL = "control"
_Curves = Mapping[str, Mapping[int, Sequence[float]]]  # by run and images seen, the values over the seed blocks


@dataclass(frozen=True, kw_only=True)
class ImagesSeen:
    """One curve per run over its snapshots, and the control as a level.

    Attributes:
        value: Which value of the metric.
        seeds: Seed blocks; at least two for a verdict.
        control: A model without this training, such as the teacher; None for the first snapshot of each run.
        control_sampler: Name of the sampler of the control; None for `sampler`.
    """

    question: ClassVar[str] = "Training improves the samples of a run beyond those of the control."
    rule: ClassVar[str] = (
        "The gain of a run is the mean over the seed blocks of its last snapshot, subtracted from that of the control "
        "(reversed where higher is better), in units of the standard deviation of this difference, "
        "sqrt(s_last^2 + s_control^2), where s is the standard deviation over the blocks. "
        "Confirmed: all gains are above 2. Contradicted: all gains are below -2. Not confirmed: otherwise. "
        "Undecided: fewer than two blocks, or a run without a control."
    )
    choices: ClassVar[tuple[str, ...]] = (
        "The deviation of single blocks is used, not the smaller one of their mean: the rule is conservative.",
        "The last snapshot is used, not the best one, which would be selected on the reported blocks.",
        "Without a control, the first snapshot of a run is its control, which has seen images as well.",
    )

    runs: tuple[str, ...]
    sampler: str
    metric: str
    value: str
    seeds: tuple[str, ...]
    control: str | None = None
    control_sampler: str | None = None

    def __post_init__(self) -> None:
        if not self.runs or not self.seeds:
            raise ValueError(f"runs and seeds: got {self.runs} and {self.seeds}, expected at least one of each")

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot, and those of the control."""
        seeds = tuple(self.seeds)
        found: dict[str, Observable] = {
            f"run.{run}": SnapshotMeasurements(run=run, sampler=self.sampler, seeds=seeds, metric=self.metric)
            for run in self.runs
        }
        if self.control is not None:
            sampler = self.control_sampler or self.sampler
            found[_CONTROL] = Measurements(model=self.control, sampler=sampler, seeds=seeds, metric=self.metric)
        return found

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return the curves, and for each run its last value, its control and its gain."""
        import numpy as np

        measured = {name: [self._read(path) for path in paths] for name, paths in files.items()}
        self._check(measured, files)
        curves = {run: self._curve(measured[f"run.{run}"]) for run in self.runs}
        controls = {run: self._control(curves[run], measured.get(_CONTROL)) for run in self.runs}
        higher = any(record["better"][self.value] == "higher" for records in measured.values() for record in records)
        gains = {run: _gain(curves[run][max(curves[run])], controls[run], higher=higher) for run in self.runs}
        arrays: dict[str, np.ndarray] = {}
        for run, curve in curves.items():
            arrays[f"{run}.images_seen"] = np.array(list(curve), dtype=np.int64)
            arrays[f"{run}.{self.value}"] = np.array(list(curve.values()), dtype=np.float64)
            arrays[f"{run}.control"] = np.array(controls[run], dtype=np.float64)
        numbers = {f"{run}.{self.value}": statistics.fmean(curve[max(curve)]) for run, curve in curves.items()}
        numbers |= {f"{run}.gain": gain for run, gain in gains.items() if gain is not None}
        control = {f"{run}.{self.value}": statistics.fmean(values) for run, values in controls.items() if values}
        draw = functools.partial(_draw, curves=curves, controls=controls, label=f"{self.metric}.{self.value}")
        verdict = _verdict(list(gains.values()))
        return Findings(arrays=arrays, numbers=numbers, control=control, verdict=verdict, draw=draw)

    def _read(self, path: Path) -> dict[str, Any]:
        record = read_measurement(path)
        missing = [key for key in ("model", "seeds", "better") if key not in record]
        if missing or self.value not in record["values"] or self.value not in record["better"]:
            raise ValueError(f"{path}: got no {missing or self.value!r}, expected it. Fix: measure it again")
        return record

    def _check(self, measured: Mapping[str, Sequence[Mapping[str, Any]]], files: Mapping[str, Sequence[Path]]) -> None:
        """Refuse measurements that are not comparable, and groups that lack a block of seeds."""
        found = [
            (path, each) for name, group in measured.items() for path, each in zip(files[name], group, strict=True)
        ]
        for path, each in found[1:]:
            if facts := differing(found[0][1], each):
                raise ValueError(f"{path}: {facts[0]} differs from {found[0][0]}. Fix: delete the outdated one")
        for name, group in measured.items():
            models = {each["model"] for each in group}
            if not group or {(each["model"], each["seeds"]) for each in group} < set(
                itertools.product(models, self.seeds)
            ):
                found_seeds = ", ".join(sorted({each["seeds"] for each in group})) or "none"
                raise ValueError(f"{name}: got the seeds {found_seeds}, expected {', '.join(self.seeds)} of each model")

    def _curve(self, records: Sequence[Mapping[str, Any]]) -> dict[int, list[float]]:
        """Return the values over the seed blocks by images seen, ascending."""
        points: dict[int, dict[str, float]] = {}
        for record in records:
            model = parse_model(record["model"])
            if not isinstance(model, Snapshot):
                raise ValueError(f"{self.metric}: got numbers of {record['model']}, expected a snapshot of a run")
            points.setdefault(model.images, {})[record["seeds"]] = record["values"][self.value]
        return {images: [points[images][seeds] for seeds in self.seeds] for images in sorted(points)}

    def _control(self, curve: Mapping[int, list[float]], records: Sequence[Mapping[str, Any]] | None) -> list[float]:
        if records is None:
            return curve[min(curve)] if len(curve) > 1 else []
        by_seeds = {record["seeds"]: record["values"][self.value] for record in records}
        return [by_seeds[seeds] for seeds in self.seeds]


def _gain(last: Sequence[float], control: Sequence[float], *, higher: bool) -> float | None:
    """Return the gain of the rule; None for fewer than two blocks or without any deviation."""
    if min(len(last), len(control)) < 2:
        return None
    deviation = (statistics.variance(last) + statistics.variance(control)) ** 0.5
    difference = statistics.fmean(control) - statistics.fmean(last)
    return None if deviation == 0 else (-difference if higher else difference) / deviation


def _verdict(gains: Sequence[float | None]) -> Verdict:
    known = [gain for gain in gains if gain is not None]
    if len(known) < len(gains):
        return "undecided"
    if all(gain > 2 for gain in known):
        return "confirmed"
    return "contradicted" if all(gain < -2 for gain in known) else "not confirmed"


def _draw(figure: Figure, *, curves: _Curves, controls: Mapping[str, Sequence[float]], label: str) -> None:
    # Means over the blocks with bars from the least to the greatest value.
    axes = figure.add_subplot()
    for index, (run, curve) in enumerate(curves.items()):
        means = [statistics.fmean(values) for values in curve.values()]
        reach = [(mean - min(values), max(values) - mean) for mean, values in zip(means, curve.values(), strict=True)]
        below, above = zip(*reach, strict=True)
        axes.errorbar(list(curve), means, yerr=(below, above), marker="o", markersize=3, color=f"C{index}", label=run)
    levels = dict.fromkeys(statistics.fmean(values) for values in controls.values() if values)
    for index, level in enumerate(levels):
        axes.axhline(level, color="0.4", linestyle="--", linewidth=1, label="control" if index == 0 else None)
    axes.set_xlabel("images seen")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    axes.legend()
