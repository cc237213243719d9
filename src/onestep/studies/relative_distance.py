"""Do one-step and multi-step generators of the same loss end in the same place? (D2O, arXiv:2405.20750, figure 2)."""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onestep.config.constraints import Name, SeedBlock
from onestep.models import Snapshot, parse_model
from onestep.records import differing, read_measurement
from onestep.studies import Findings, Measurements, Observable, Verdict
from onestep.studies._arms import UNDECIDED, Arms, Spread, check_arms, decided, described, finite, spearman, spread

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["RelativeDistance"]

_Values = Mapping[tuple[str, str], Mapping[str, float]]  # by label and run, the value of each seed block
_KINDS = ("absolute", "relative")

_STEPS, _MIDDLE = re.compile(r"[1-9][0-9]*"), re.compile(r"m=([0-9.]+(?:e-?[0-9]+)?)")
_CORRELATION, _DEVIATIONS, _RATIO = 0.8, 2.0, 1.5  # of the rule


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """The measurements of an arm: for each training the value of each seed block."""

    absolute: tuple[tuple[float, ...], ...]
    relative: tuple[tuple[float, ...], ...]

    def over_seeds(self, kind: str) -> Spread:
        """Return mean and deviation over the trainings of the means over the seed blocks."""
        return spread(map(statistics.fmean, getattr(self, kind)))


@dataclass(frozen=True, kw_only=True)
class RelativeDistance:
    """The distance of multi-step generators to the data and to the one-step student, by their steps (2A, 2B).

    Attributes:
        arms: Runs by the number of steps, `1` the one-step students, and by the middle sigma of two steps, `m=0.8`.
        samplers: Name of the sampler of each arm.
        absolute: Metric against real images.
        relative: Metric `against` the family of the one-step students with the seeds of the measured images: of a
            multi-step run it is the distance to a student, of a student that to the next one, the control.
        floor: Metric `against` the same family with seeds apart from `seeds`: the distance of two samples of a student.
        value: Which value of the metrics; lower is better.
    """

    question: ClassVar[str] = (
        "A multi-step generator ends in another place than a one-step student of the same loss, the more so the more "
        "steps it has, although both fit the data equally well."
    )
    rule: ClassVar[str] = (
        "Relative is the mean over the training seeds of the distance between the images of a multi-step generator and "
        "those of a one-step student, control the same between students of different training seeds, and deviation "
        "sqrt(s_relative^2 + s_control^2) over the training seeds. Confirmed: Spearman's correlation of steps and "
        f"relative over the multi-step arms is at least {_CORRELATION}, relative at the fewest of their steps is above "
        f"control + {_DEVIATIONS:g} deviations, and the largest distance to the data over all numbers of steps is at "
        f"most {_RATIO:g} times the smallest. Contradicted: relative is at most control + 1 deviation for all of them. "
        f"Not confirmed: otherwise. {UNDECIDED} Also undecided: fewer than two multi-step arms."
    )
    choices: ClassVar[tuple[str, ...]] = (
        "The multi-step generators are trained with the loss of the student; that those of the paper are is deduced "
        "from its code and caption, not stated.",
        "The networks take one noise level; the released code passes the next one as well, which its networks refuse.",
        "Compared images have the same seeds, as in the paper: a part of the noise of sampling cancels in relative "
        "and control, but none of it in the floor, whose two samples have different seeds.",
        "The control of a student is the next one of its family, so three students make three pairs, which share them.",
        "The deviation of relative and control together is used; the paper has no deviation, no control and no floor.",
        "The range of the middle sigma is ours; arms by middle sigma are shown and do not decide.",
    )

    arms: Arms
    samplers: Mapping[str, Name]
    absolute: Name
    relative: Name
    floor: Name
    value: str = "frechet"
    seeds: tuple[SeedBlock, ...]

    def __post_init__(self) -> None:
        check_arms(self.arms, named=("1",))
        for label in self.arms:
            if not (_STEPS.fullmatch(label) or _MIDDLE.fullmatch(label)):
                raise ValueError(f"arms: got the label {label!r}, expected a number of steps, or a middle sigma: m=0.8")
            if label not in self.samplers:
                raise ValueError(f"samplers: got {', '.join(self.samplers)}, expected one of the label {label!r}")
        if not any(steps > 1 for steps, _ in self._by_steps()):
            raise ValueError(f"arms: got {', '.join(self.arms)}, expected one of 2 or more steps")
        if not self.seeds:
            raise ValueError("seeds: got none, expected at least one block")

    def observes(self) -> Mapping[str, Observable]:
        """Return both distances of the last snapshot of each run, and the floor of the students."""
        return {
            f"{label}.{kind}.{run}": Measurements(
                model=run, sampler=self.samplers[label], seeds=tuple(self.seeds), metric=getattr(self, kind)
            )
            for label, runs in self.arms.items()
            for kind in ("absolute", "relative", *(("floor",) if label == "1" else ()))
            for run in runs
        }

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return the distances of each arm, the floor, the control, and the verdict of the arms by steps."""
        found = {kind: self._read(kind, files) for kind in ("absolute", "relative", "floor")}
        arms = {label: self._arm(label, found) for label in self.arms}
        floor = spread(statistics.fmean(found["floor"]["1", run].values()) for run in self.arms["1"])
        # Two students at least; one alone is compared with itself.
        control = arms["1"].over_seeds("relative") if len(self.arms["1"]) > 1 else None
        by_steps = [(steps, arms[label]) for steps, label in self._by_steps()]
        correlation, ratio = _trend(by_steps), _ratio(by_steps)
        controls = {"floor": floor} | ({} if control is None else {"relative": control})
        verdict = decided(
            {label: runs for label, runs in self.arms.items() if _STEPS.fullmatch(label)},
            _verdict(by_steps, control=control, correlation=correlation, ratio=ratio),
        )
        return Findings(
            arrays={**_arrays(arms), "floor": _array(floor.values)},
            numbers=finite(dict(_numbers(arms)) | {"absolute_ratio": ratio, "spearman": correlation})
            | self._seen(files),
            control={name: value for key, each in controls.items() for name, value in described(key, each).items()},
            verdict=verdict,
            draw=self._drawing(arms, control=control, floor=floor),
        )

    def _by_steps(self) -> list[tuple[int, str]]:
        """Return (steps, label) of the arms by steps, ascending."""
        return sorted((int(label), label) for label in self.arms if _STEPS.fullmatch(label))

    def _by_middle(self) -> list[tuple[float, str]]:
        found = ((label, _MIDDLE.fullmatch(label)) for label in self.arms)
        return sorted((float(middle[1]), label) for label, middle in found if middle is not None)

    def _arm(self, label: str, found: Mapping[str, _Values]) -> _Arm:
        absolute, relative = (
            tuple(tuple(found[kind][label, run][seeds] for seeds in self.seeds) for run in self.arms[label])
            for kind in _KINDS
        )
        return _Arm(absolute=absolute, relative=relative)

    def _seen(self, files: Mapping[str, Sequence[Path]]) -> dict[str, float]:
        """Return the images that the first training of each arm has seen."""
        firsts = {label: files[f"{label}.absolute.{runs[0]}"][0] for label, runs in self.arms.items()}
        models = {label: parse_model(read_measurement(path)["model"]) for label, path in firsts.items()}
        return {f"{label}.images_seen": each.images for label, each in models.items() if isinstance(each, Snapshot)}

    def _read(self, kind: str, files: Mapping[str, Sequence[Path]]) -> _Values:
        """Return the values of one kind of distance. ValueError: They are not what the study compares."""
        values: dict[tuple[str, str], dict[str, float]] = {}
        first: tuple[Path, dict[str, Any]] | None = None
        for label, run in ((label, run) for label, runs in self.arms.items() for run in runs):
            found = values[label, run] = {}
            for path in files.get(f"{label}.{kind}.{run}", ()):
                record = read_measurement(path)
                first = first or (path, record)
                if self.value not in record["values"] or "seeds" not in record:
                    raise ValueError(f"{path}: got no {self.value!r} of a seed block. Fix: measure it again")
                if facts := differing(first[1], record):
                    raise ValueError(f"{path}: {facts[0]} differs from {first[0]}. Fix: delete the outdated one")
                self._check_reference(path, record, kind=kind, run=run)
                found[record["seeds"]] = float(record["values"][self.value])
            if set(found) != set(self.seeds) and (kind != "floor" or label == "1"):
                raise ValueError(f"{kind} of {run}: got the seeds {list(found)}, expected {', '.join(self.seeds)}")
        return values

    def _check_reference(self, path: Path, record: Mapping[str, Any], *, kind: str, run: str) -> None:
        """Raise ValueError unless a measurement compares with what its kind of distance does."""
        reference = record.get("reference") or {}
        other = parse_model(reference["model"]).name if "model" in reference else None
        same_seeds = reference.get("seeds") == record["seeds"]
        students = self.arms["1"]
        others = [each for each in students if each != run] or students
        expected, fits = {
            "absolute": ("real images", other is None),
            "relative": ("another one-step student, with the same seeds", other in others and same_seeds),
            "floor": ("the same student, with other seeds", other == run and not same_seeds),
        }[kind]
        if not fits:
            found = "real images" if other is None else f"{other}, seeds {reference.get('seeds')}"
            fix = f"Fix: `against` of metrics.{getattr(self, kind)}"
            raise ValueError(f"{path}: got a distance to {found}, expected one to {expected}. {fix}")

    def _drawing(self, arms: Mapping[str, _Arm], *, control: Spread | None, floor: Spread) -> Callable[[Figure], None]:
        panels = [("steps", [(float(steps), arms[label]) for steps, label in self._by_steps()], control)]
        if middles := self._by_middle():
            panels.append(("middle sigma", [(middle, arms[label]) for middle, label in middles], None))
        return functools.partial(_draw, panels=panels, floor=floor.mean, label=f"{self.absolute}.{self.value}")


_Points = Sequence[tuple[float, _Arm]]


def _trend(by_steps: _Points) -> float | None:
    """Return Spearman's correlation of steps and relative distance over the multi-step arms."""
    several = [(steps, arm.over_seeds("relative").mean) for steps, arm in by_steps if steps > 1]
    return spearman([steps for steps, _ in several], [mean for _, mean in several])


def _ratio(by_steps: _Points) -> float:
    """Return the largest distance to the data over the smallest, infinite for a smallest one of 0."""
    means = [arm.over_seeds("absolute").mean for _, arm in by_steps]
    return max(means) / min(means) if min(means) > 0 else float("inf")


def _verdict(by_steps: _Points, *, control: Spread | None, correlation: float | None, ratio: float) -> Verdict:
    if control is None or correlation is None:
        return "undecided"
    gaps = []
    for _, arm in (point for point in by_steps if point[0] > 1):
        relative = arm.over_seeds("relative")
        deviation = ((relative.deviation or 0.0) ** 2 + (control.deviation or 0.0) ** 2) ** 0.5
        gaps.append((relative.mean - control.mean, deviation))
    if all(gap <= deviation for gap, deviation in gaps):
        return "contradicted"
    gap, deviation = gaps[0]
    apart = gap > _DEVIATIONS * deviation
    return "confirmed" if correlation >= _CORRELATION and apart and ratio <= _RATIO else "not confirmed"


def _numbers(arms: Mapping[str, _Arm]) -> Iterator[tuple[str, float]]:
    for label, arm in arms.items():
        for kind in ("absolute", "relative") if label != "1" else ("absolute",):
            yield from described(f"{label}.{kind}", arm.over_seeds(kind)).items()


def _arrays(arms: Mapping[str, _Arm]) -> dict[str, np.ndarray]:
    """Return by label and kind the values [trainings, seed blocks]."""
    return {f"{label}.{kind}": _array(getattr(arm, kind)) for label, arm in arms.items() for kind in _KINDS}


def _array(values: Sequence[Any]) -> np.ndarray:
    import numpy as np

    return np.array(values, dtype=np.float64)


def _draw(figure: Figure, *, panels: Sequence[tuple[str, _Points, Spread | None]], floor: float, label: str) -> None:
    # Over steps and over the middle sigma: the distance to the data in grey, that to the student in blue.
    from matplotlib.ticker import NullLocator

    from onestep.figures import COLOURS

    axes: Axes
    for axes, (quantity, points, control) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        several = [(x, arm) for x, arm in points if quantity != "steps" or x > 1]
        for kind, shown, colour, title in (
            ("absolute", points, COLOURS[1], "to the data"),
            ("relative", several, COLOURS[0], "to the student"),
        ):
            spreads = [arm.over_seeds(kind) for _, arm in shown]
            bars = [each.deviation or 0.0 for each in spreads]
            axes.errorbar(
                [x for x, _ in shown], [each.mean for each in spreads], yerr=bars, marker="o", color=colour, label=title
            )
        if control is not None:
            bar, colour = control.deviation or 0.0, COLOURS[2]
            axes.errorbar([1.0], [control.mean], yerr=bar, fmt="s", color=colour, label="another student")
        axes.axhline(floor, color="0.5", linestyle="--", linewidth=1, label="two samples")
        axes.set_xlabel(quantity)
        if quantity != "steps":
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel(label)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
