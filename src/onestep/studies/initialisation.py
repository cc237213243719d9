"""What does a one-step generator take over from its teacher, features or a map? (arXiv:2502.08005, DiffRatio)."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onestep.config.constraints import Constraint, Count, Name, Positive, SmallCount, Text
from onestep.studies import Findings, Measurements, Observable, RealImages, Verdict, Weights
from onestep.studies._arms import (
    CHOICES,
    UNDECIDED,
    Curve,
    StudyOfArms,
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
from onestep.studies._arms_figure import bar_below, draw_curves, few_ticks, look
from onestep.studies._layers import Batch, block_axis

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["InitialWeights"]

_FACTOR = 1.5  # of the teacher arm's value at the budget, for the threshold
_LONGER = 10  # budgets after which fresh weights are compared once more
_IMAGES = "images"

Levels = Annotated[tuple[Positive, ...], Constraint(min_length=1, max_length=6)]


@dataclass(frozen=True, kw_only=True)
class InitialWeights(StudyOfArms):
    """One arm for each kind of initial weights (`init` of a run), all else equal; each with a snapshot at 0 images.

    Attributes:
        budget: Images seen at which arms are compared. Each run has snapshots at 0, an eighth, a half and the whole of
            it; those of `random` may be longer: with ten times the images they decide whether it is only slower.
        teacher: Label of the arm with the teacher's weights.
        random: Label of the arm with fresh weights.
        single_level: Label of the arm that was pre-trained at the generator's noise level alone.
        features_only: Label of the arm with the teacher's weights but for its first and last layer and its embedding.
        mapping_only: Label of the arm that was regressed on pairs of noise and image; None without one.
        dataset: Of the images whose classes linear probes find; None for no probes.
        sigmas: Noise levels of the probes.
        probe_images: Images of the probes; two thirds train them.
        batch: Images that pass through a network at once.
        stated: Choices of the config, one sentence each, such as the length of the pre-trainings.
    """

    question: ClassVar[str] = (
        "The teacher's weights help a one-step generator by features that cover many noise levels, not as a map from "
        "latents to images."
    )
    rule: ClassVar[str] = (
        "Of the values at the budget. H2, features: the arm of a single level is worse than that of the teacher by "
        "more than 2 deviations, and features without the map are nearer to the teacher than to fresh weights. H1, the "
        "map: the arm of a single level is within 2 deviations of the teacher's, and features without the map are not "
        "better than fresh weights by more than 2 deviations. Confirmed: H2. Contradicted: H1. Not confirmed: neither. "
        f"{UNDECIDED} The weights are indispensable if fresh ones are worse by more than 2 deviations at the budget "
        f"and, against the teacher's at the budget, after {_LONGER} times the images."
    )

    budget: Count
    teacher: Text
    random: Text
    single_level: Text
    features_only: Text
    mapping_only: Text | None = None
    dataset: Name | None = None
    sigmas: Levels = (0.1, 0.63, 2.5)
    probe_images: SmallCount = 1_500
    batch: Batch = 64
    stated: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        check_arms(self.arms, named=[*self._decisive, *filter(None, [self.mapping_only])])
        if self.budget < 8:
            raise ValueError(f"budget: got {self.budget}, expected at least 8, of which an eighth is one image")

    @property
    def _decisive(self) -> tuple[str, ...]:
        return (self.teacher, self.random, self.single_level, self.features_only)

    @property
    def stages(self) -> dict[str, int]:
        """Counts of images at which values are reported, by name."""
        return {"start": 0, "eighth": self.budget // 8, "half": self.budget // 2, "end": self.budget}

    @property
    def choices(self) -> tuple[str, ...]:
        """Choices of every study of arms, of this one and of its config."""
        probes = (
            "A probe is a ridge regression of the class on the channel means of a block's output for a noisy image, "
            "its penalty 0.01 on standardised features; its accuracy is that on every third image, which is held out. "
            "It is that of the initial weights, mean over blocks and the best block.",
            "Fresh blocks are nearly the identity, because their last layer is nearly zero.",
        )
        own = (
            "How the paper separates its hypotheses is not known: arms and rule are choices of this project.",
            f"The threshold is {_FACTOR} times the mean value of the teacher's weights at the budget.",
            "Nearer means a smaller difference of the mean values at the budget.",
            "The control of an arm are the numbers of fresh weights.",
            "The arm of regressed pairs is reported and not part of the rule: it is a distilled generator already. It "
            "decides only on data where its start is no better than the end of the others.",
        )
        return (*CHOICES, *own, *(probes if self.dataset is not None else ()), *self.stated)

    def observes(self) -> Mapping[str, Observable]:
        """Return the metrics of each snapshot, the logs, and of each run the initial weights for probes."""
        found = dict(super().observes())
        for run in self.runs:
            for stage, images in self.stages.items():
                found[f"{stage}.{run}"] = Measurements(
                    model=f"{run}@{images}", sampler=self.sampler, seeds=self.seeds, metric=self.metric
                )
            if self.dataset is not None:
                found[f"weights.{run}"] = Weights(model=f"{run}@0", blocks=True)
        return found if self.dataset is None else found | {_IMAGES: RealImages(dataset=self.dataset)}

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return the values at each stage, images until the threshold, the two hypotheses and the probes."""
        found = self.trainings(files)
        values = {label: self._at_stages(group) for label, group in found.curves.items()}
        probes = self._probes(files)
        threshold = _FACTOR * statistics.fmean(values[self.teacher]["end"])
        of_arms = {
            label: {
                **self._described(values[label], self.value),
                "images_until_threshold": statistics.fmean(each.images_until(threshold) for each in group),
                "collapsed": found.collapsed(label),
                **self._recalls(label, files),
                **({} if label not in probes else _of_probes(probes[label], self.sigmas)),
            }
            for label, group in found.curves.items()
        }
        numbers: dict[str, float | None] = {"threshold": threshold, **self._decided(found.curves, values)}
        numbers |= {f"{label}.{key}": number for label, own in of_arms.items() for key, number in own.items()}
        control = {
            f"{label}.{key}": of_arms[self.random][key]
            for label, own in of_arms.items()
            for key in own
            if label != self.random and key in of_arms[self.random]
        }
        arrays = dict(arrays_of(found.curves, value=self.value))
        for label, measured in probes.items():
            arrays |= {f"{label}.probes": measured.accuracy, "layers": measured.layers, "part": measured.part}
        return Findings(
            arrays=arrays | ({"sigma": _array(self.sigmas)} if probes else {}),
            numbers=finite(numbers),
            control=finite(control),
            verdict=decided({label: self.arms[label] for label in self._decisive}, self._verdict(values)),
            draw=functools.partial(_draw, study=self, curves=found.curves, values=values, probes=probes),
        )

    def _at_stages(self, group: Sequence[Curve]) -> dict[str, tuple[float, ...]]:
        """Return the value of each training at each stage, and at the last snapshot after the budget."""
        found = {stage: tuple(_at(curve, images) for curve in group) for stage, images in self.stages.items()}
        longer = group[0].images[-1] > self.budget
        return found | ({"longer": tuple(curve.last for curve in group)} if longer else {})

    def _described(self, stages: Mapping[str, Sequence[float]], value: str) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for stage, values in stages.items():
            found |= described(f"{value}.{stage}", spread(values))
        return found

    def _recalls(self, label: str, files: Mapping[str, Sequence[Path]]) -> dict[str, float | None]:
        """Return the recall at the budget."""
        if self.recall is None:
            return {}
        metric, _, value = self.recall.partition(".")
        options: dict[str, Any] = {"metric": metric, "value": value, "seeds": self.seeds, "better": "higher"}
        (group,) = read_curves({label: self.arms[label]}, files, **options).values()
        return dict(described(f"{value}.end", spread(_at(curve, self.budget) for curve in group)))

    def _decided(
        self, curves: Mapping[str, Sequence[Curve]], values: Mapping[str, Mapping[str, Sequence[float]]]
    ) -> dict[str, float | None]:
        """Return what the rule compares, and its parts as 1 for true and 0 for false."""
        ends = {label: each["end"] for label, each in values.items()}
        teacher, random = ends[self.teacher], ends[self.random]
        found = {f"{label}.gap": gap(each, teacher) for label, each in ends.items() if label != self.teacher}
        found[f"{self.features_only} against {self.random}.gap"] = gap(ends[self.features_only], random)
        starts = [statistics.fmean(each["start"]) for each in values.values()]
        found["rank_correlation"] = spearman(starts, [statistics.fmean(each) for each in ends.values()])
        h1, h2 = self._hypotheses(values)
        found |= {"H1": h1, "H2": h2}
        slower = gap(random, teacher)
        if slower is not None:
            found["worse_at_the_budget"] = float(slower > 2)
        if slower is not None and curves[self.random][0].images[-1] >= _LONGER * self.budget:
            later = gap(values[self.random]["longer"], teacher)
            found[f"{self.random}.longer.gap"] = later
            found["indispensable"] = float(slower > 2 and later is not None and later > 2)
        if self.mapping_only is not None:
            others = [statistics.fmean(each) for label, each in ends.items() if label != self.mapping_only]
            start = statistics.fmean(values[self.mapping_only]["start"])
            found[f"{self.mapping_only}.decides"] = float(start >= min(others))
        return found

    def _hypotheses(self, values: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[float | None, float | None]:
        """Return H1 and H2 as 1 for true and 0 for false; None for fewer than two training seeds."""
        teacher, random, single, features = (values[label]["end"] for label in self._decisive)
        level, rest = gap(single, teacher), gap(features, random)
        if level is None or rest is None:
            return None, None
        middle = statistics.fmean(features)
        nearer = abs(middle - statistics.fmean(teacher)) < abs(middle - statistics.fmean(random))
        return float(abs(level) <= 2 and rest >= -2), float(level > 2 and nearer)

    def _verdict(self, values: Mapping[str, Mapping[str, Sequence[float]]]) -> Verdict:
        h1, h2 = self._hypotheses(values)
        if h1 is None or h2 is None:
            return "undecided"
        return "confirmed" if h2 else "contradicted" if h1 else "not confirmed"

    def _probes(self, files: Mapping[str, Sequence[Path]]) -> dict[str, _Probes]:
        """Return the accuracies of probes on the initial weights of each arm; equal files are probed once."""
        if self.dataset is None:
            return {}
        import numpy as np

        from onestep.files import sha256_of_file
        from onestep.studies import _hooks, _probes

        known: dict[str, np.ndarray] = {}
        blocks: tuple[_hooks.Block, ...] = ()
        for path in (path for run in self.runs for path in files[f"weights.{run}"]):
            digest = sha256_of_file(path)
            if digest in known:
                continue
            network = _hooks.load(path)
            blocks = _hooks.blocks_of(network, source=path, like=blocks)
            known[digest] = _probes.accuracies(
                network,
                blocks,
                archive=files[_IMAGES][0],
                images=self.probe_images,
                sigmas=self.sigmas,
                batch=self.batch,
            )
        layers, part = (np.array([getattr(block, name) for block in blocks]) for name in ("label", "part"))
        return {
            label: _Probes(
                accuracy=np.stack([known[sha256_of_file(files[f"weights.{run}"][0])] for run in runs]),
                layers=layers,
                part=part,
            )
            for label, runs in self.arms.items()
        }


@dataclass(frozen=True, kw_only=True)
class _Probes:
    """Accuracies [trainings, L, S] of an arm's initial weights, and the names [L] of blocks and of their parts."""

    accuracy: np.ndarray
    layers: np.ndarray
    part: np.ndarray


def _at(curve: Curve, images: int) -> float:
    """Return the value of a training at a snapshot. ValueError: There is none at this number of images."""
    if images not in curve.images:
        known = ", ".join(map(str, curve.images))
        raise ValueError(f"budget: got no snapshot of {curve.run} at {images} images, expected one: {known}")
    return curve.means[curve.images.index(images)]


def _of_probes(found: _Probes, sigmas: Sequence[float]) -> dict[str, float | None]:
    """Return at each noise level the mean over blocks, and the accuracy of the best block."""
    numbers: dict[str, float | None] = {}
    for column, sigma in enumerate(sigmas):
        each = found.accuracy[:, :, column]
        numbers |= described(f"probe.{sigma:g}", spread(map(float, each.mean(axis=1))))
        numbers |= described(f"probe.{sigma:g}.best", spread(map(float, each.max(axis=1))))
    return numbers


def _array(values: Sequence[float]) -> np.ndarray:
    import numpy as np

    return np.array(values)


def _draw(
    figure: Figure,
    *,
    study: InitialWeights,
    curves: Mapping[str, tuple[Curve, ...]],
    values: Mapping[str, Mapping[str, Sequence[float]]],
    probes: Mapping[str, _Probes],
) -> None:
    """Draw the curves, the end over the start of each arm, and the accuracies of the probes at each noise level."""
    levels = study.sigmas if probes else ()
    columns = 2 * max(len(levels), 2)
    figure.set_size_inches(9.0, 6.2 if probes else 3.4)
    grid = figure.add_gridspec(2 if probes else 1, columns, height_ratios=(1.25, 1) if probes else None)
    left, right = figure.add_subplot(grid[0, : columns // 2]), figure.add_subplot(grid[0, columns // 2 :])
    draw_curves(left, curves, label=study.measured)
    left.axvline(study.budget, color="0.5", linestyle=":", linewidth=1)
    left.set_title("A: training")
    handles, names = left.get_legend_handles_labels()
    left.legend().remove()
    _draw_ends(right, values, label=study.measured)
    figure.legend(handles, names, loc="outside right upper")
    width = columns // max(len(levels), 1)
    for column, sigma in enumerate(levels):
        axes = figure.add_subplot(grid[1, column * width : (column + 1) * width])
        _draw_probes(axes, probes, column=column)
        axes.set_title(f"{'CDEFGH'[column]}: probes at noise level {sigma:g}", pad=12)  # above the parts
        axes.set_ylabel("accuracy" if column == 0 else "")


def _draw_ends(axes: Any, values: Mapping[str, Mapping[str, Sequence[float]]], *, label: str) -> None:
    """Draw the value at the budget over the value before training, one point an arm."""
    points = {name: (spread(each["start"]), spread(each["end"])) for name, each in values.items()}
    reach = [value for pair in points.values() for each in pair for value in each.values]
    for index, (start, end) in enumerate(points.values()):
        bars = {"xerr": bar_below(start), "yerr": bar_below(end)}
        axes.errorbar(start.mean, end.mean, **bars, capsize=1.5, **look(index))
    if min(reach) > 0 and math.isfinite(max(reach)):
        axes.set_xscale("log")
        axes.set_yscale("log")
        few_ticks(axes.xaxis, [value for start, _ in points.values() for value in start.values])
        few_ticks(axes.yaxis, [value for _, end in points.values() for value in end.values])
    axes.set_xlabel(f"{label} before training")
    axes.set_ylabel(f"{label} at the budget")
    axes.set_title("B: start and end")


def _draw_probes(axes: Any, probes: Mapping[str, _Probes], *, column: int) -> None:
    """Draw the mean accuracy of each arm by block."""
    for index, found in enumerate(probes.values()):
        mean = found.accuracy[:, :, column].mean(axis=0)
        axes.plot(mean, markersize=2.5, linewidth=1, **look(index))
    first = next(iter(probes.values()))
    block_axis(axes, list(first.layers), list(first.part))
    axes.set_ylim(0, 1)
