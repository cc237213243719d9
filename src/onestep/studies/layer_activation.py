"""Are different layers active at different noise levels? (D2O, arXiv:2405.20750, figure 3)."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onestep.config.constraints import Name
from onestep.studies import Findings, Observable, RealImages, Verdict
from onestep.studies._arms import spearman
from onestep.studies._layers import (
    StudyOfBlocks,
    agreed,
    block_axis,
    decades,
    depth_bar,
    depth_colours,
    over_trainings,
    places,
    step_axis,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor

    from onestep.studies._hooks import Block

__all__ = ["LayerActivation"]

_CONFIRMED, _CONTRADICTED, _QUARTERS = 5.0, 2.0, 3
_STATISTICS = ("activation", "rms", "contribution")


@dataclass(frozen=True, kw_only=True)
class LayerActivation(StudyOfBlocks):
    """The mean absolute output of the last layer of each block, along the trajectory of a teacher.

    Attributes:
        dataset: Real images for the second kind of input, image + sigma noise; None leaves it out.
    """

    question: ClassVar[str] = "The layers of a diffusion model are active at different noise levels."
    rule: ClassVar[str] = (
        "The activation of a layer is the mean of its absolute output, its range R is (largest - least) / mean over "
        "the steps. "
        f"Confirmed: the median R over the layers is at least {_CONFIRMED:g} times that of an untrained network "
        f"of the same shape, and the largest activations fall into at least {_QUARTERS} of the four quarters of the "
        f"steps. Contradicted: the median R is at most {_CONTRADICTED:g} times that of the untrained network. "
        "Not confirmed: otherwise, or trainings of the teacher differ in this. "
        "Undecided: fewer trainings of the teacher than `least_trainings`."
    )
    choices: ClassVar[tuple[str, ...]] = (
        "The paper gives neither statistic nor inputs. Here the statistic is the mean absolute output of the last 3x3 "
        "convolution of each block, before shortcut and scale; root mean square and the ratio to the block's output "
        "are in the arrays.",
        "Inputs are the states of the deterministic sampler at the first evaluation of each step; as a second kind, "
        "`noised`, real images with noise at the same levels. The verdict is that of the first kind.",
        "The curves are scaled to [0, 1] as in the paper, which hides the range: an untrained network has curves that "
        "differ as much. So the verdict is from R.",
        "A layer of constant activation has relative value 0 and is dashed.",
        "The untrained network is followed on its own trajectory. Weights that are initialised with zeros are drawn "
        "from N(0, 1 / fan-in), since their layers would be silent.",
        "Generators are compared with the first network of the teacher, from which they start; `elsewhere` are the "
        "layers whose largest activation in the teacher is at another step than the first.",
        "The bound of `contradicted` is ours.",
    )

    dataset: Name | None = None

    def observes(self) -> Mapping[str, Observable]:
        """Return the weights of all networks, and the real images."""
        found = dict(super().observes())
        return found if self.dataset is None else found | {f"images.{self.dataset}": RealImages(dataset=self.dataset)}

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return activations by layer and step, their ranges, peaks and trends, and those of generators."""
        import numpy as np

        from onestep.studies._hooks import untrained

        images = None if self.dataset is None else files[f"images.{self.dataset}"][0]
        teachers = [self._followed(files[model][0], images=images) for model in self.arms[self.teacher]]
        controls = [
            self._followed(files[model][0], images=images, network=untrained(files[model][0], seed=index))
            for index, model in enumerate(self.arms[self.teacher])
        ]
        first = teachers[0]
        students = {
            label: [self._student(files[model][0], first) for model in models]
            for label, models in self.arms.items()
            if label != self.teacher
        }
        arrays = places(first.levels, first.blocks)
        for who, group in ((self.teacher, teachers), ("untrained", controls)):
            for kind, name in itertools.product(first.kinds, _STATISTICS):
                prefix = f"{who}.{kind}." if kind else f"{who}."
                arrays[f"{prefix}{name}"] = np.stack([each.kinds[kind][name] for each in group])
            arrays[f"{who}.relative"] = np.stack([relative(each.activation) for each in group])
            arrays[f"{who}.range"] = np.stack([relative_range(each.activation) for each in group])
            arrays[f"{who}.peak_step"] = np.stack([each.activation.argmax(axis=-1) for each in group])
        for label, found in students.items():
            for name in _STATISTICS:
                arrays[f"{label}.{name}"] = np.stack([each[name][:, 0] for each in found])
        numbers, decision = self._numbers(teachers, controls)
        control = over_trainings([_described(each) for each in controls])
        for label, found in students.items():
            compared = [_compared(each["activation"][:, 0], first.activation) for each in found]
            numbers |= {f"{label}.{key}": value for key, value in over_trainings(compared).items()}
        draw = functools.partial(_draw, arrays=arrays, teacher=self.teacher, students=tuple(students))
        return Findings(arrays=arrays, numbers=numbers, control=control, verdict=decision, draw=draw)

    def _followed(self, path: Path, *, images: Path | None, network: Any = None) -> _Followed:
        """Observe a network of the teacher's kind, by default the one of the file, on both kinds of input."""
        from onestep.studies import _hooks

        network = network or _hooks.load(path)
        blocks = _hooks.blocks_of(network, source=path)
        shown: dict[str, Any] = {"seeds": self.block, "batch": self.batch}
        seen = Activations(blocks=len(blocks), steps=self.steps)
        followed = _hooks.trajectory(network, blocks, sampler=self.sampler(), see=seen.see, **shown)
        kinds = {"": seen.means}
        if images is not None:
            clean, condition = _hooks.real_images(images, network, count=len(self.block))
            noised = Activations(blocks=len(blocks), steps=self.steps)
            _hooks.at_levels(
                network, blocks, levels=followed, see=noised.see, images=clean, condition=condition, **shown
            )
            kinds["noised"] = noised.means
        return _Followed(blocks=blocks, levels=tuple(followed), kinds=kinds)

    def _student(self, path: Path, teacher: _Followed) -> dict[str, np.ndarray]:
        """Observe a one-step generator at the first noise level, from the same noise."""
        from onestep.studies import _hooks

        network = _hooks.load(path)
        blocks = _hooks.blocks_of(network, source=path, like=teacher.blocks)
        seen = Activations(blocks=len(blocks), steps=1)
        first = teacher.levels[:1]
        _hooks.at_levels(network, blocks, levels=first, seeds=self.block, batch=self.batch, see=seen.see)
        return seen.means

    def _numbers(
        self, teachers: Sequence[_Followed], controls: Sequence[_Followed]
    ) -> tuple[dict[str, float], Verdict]:
        found, verdicts = [], []
        for teacher, control in zip(teachers, controls, strict=True):
            numbers = _described(teacher)
            for kind in teacher.kinds:
                prefix = f"{kind}." if kind else ""
                ours, theirs = (_median_range(each, kind) for each in (teacher, control))
                numbers[f"{prefix}range.factor"] = ours / theirs if theirs else None
            found.append(numbers)
            verdicts.append(verdict(numbers["range.factor"], numbers["quarters"]))
        return over_trainings(found), agreed(verdicts, least=self.least_trainings)


@dataclass(frozen=True, kw_only=True)
class _Followed:
    """What was seen of a network: by kind of input, each statistic [L, T]."""

    blocks: tuple[Block, ...]
    levels: tuple[float, ...]
    kinds: Mapping[str, Mapping[str, np.ndarray]]  # "" for the trajectory

    @property
    def activation(self) -> np.ndarray:
        return self.kinds[""]["activation"]


class Activations:
    """Means over images, channels and pixels of what blocks show at each step, added up batch by batch."""

    def __init__(self, *, blocks: int, steps: int) -> None:
        import numpy as np

        # Of |layer|, layer^2 and |output|: sums, and how many numbers were added.
        self._sums, self._counts = np.zeros((3, blocks, steps)), np.zeros((3, blocks, steps))

    def see(self, step: int, kind: str, block: int, value: Tensor) -> None:
        """Add what `onestep.studies._hooks` shows."""
        import torch

        if kind not in ("layer", "output"):
            return
        size = value.abs()
        for index, each in ((0, size), (1, size.square())) if kind == "layer" else ((2, size),):
            # Image by image, so that the order of additions does not depend on the number of threads.
            sums = each.flatten(1).sum(dim=1, dtype=torch.float64)
            self._sums[index, block, step] += sums.cpu().numpy().sum()
            self._counts[index, block, step] += each.numel()

    @property
    def means(self) -> dict[str, np.ndarray]:
        """`activation`: mean |layer|; `rms`: its root mean square; `contribution`: mean |layer| / mean |output|."""
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            absolute, square, output = self._sums / self._counts
            contribution = np.nan_to_num(absolute / output, nan=0.0, posinf=0.0)
        return {"activation": absolute, "rms": np.sqrt(square), "contribution": contribution}


def relative(activation: np.ndarray) -> np.ndarray:
    """Return each layer's activation [..., T] from 0 at its least to 1 at its largest step; 0 for a constant one."""
    import numpy as np

    least = activation.min(axis=-1, keepdims=True)
    width = activation.max(axis=-1, keepdims=True) - least
    return np.divide(activation - least, width, out=np.zeros_like(activation), where=width > 0)


def relative_range(activation: np.ndarray) -> np.ndarray:
    """Return R = (largest - least) / mean over the steps [..., T]; 0 for a silent layer."""
    import numpy as np

    mean = activation.mean(axis=-1)
    return np.divide(np.ptp(activation, axis=-1), mean, out=np.zeros_like(mean), where=mean > 0)


def quarters_with_peaks(activation: np.ndarray) -> int:
    """Return how many of the four quarters of the steps have the largest activation of a layer [L, T]."""
    steps = activation.shape[-1]
    return len({int(4 * peak) // steps for peak in activation.argmax(axis=-1)})


def _median_range(network: _Followed, kind: str) -> float:
    return statistics.median(map(float, relative_range(network.kinds[kind]["activation"])))


def _described(network: _Followed) -> dict[str, float | None]:
    """Return the numbers of a network that need no other one."""
    import numpy as np

    numbers: dict[str, float | None] = {}
    for kind, seen in network.kinds.items():
        prefix, activation = f"{kind}." if kind else "", seen["activation"]
        ranges = relative_range(activation)
        numbers[f"{prefix}range.median"] = float(np.median(ranges))
        numbers[f"{prefix}range.least"], numbers[f"{prefix}range.largest"] = float(ranges.min()), float(ranges.max())
        numbers[f"{prefix}quarters"] = quarters_with_peaks(activation)
        numbers[f"{prefix}constant_layers"] = int((ranges == 0).sum())
        curves, moving = relative(activation), ranges > 0
        numbers[f"{prefix}curve_correlation"] = _mean_correlation(curves[moving])
        centres = curves @ np.arange(curves.shape[-1]) / np.maximum(curves.sum(axis=-1), 1e-300)
        parts = [block.part for block in network.blocks]
        for part in ("", *dict.fromkeys(parts)):
            chosen = [index for index in range(len(parts)) if moving[index] and part in ("", parts[index])]
            name = f"{prefix}depth_trend.{part}" if part else f"{prefix}depth_trend"
            numbers[name] = spearman(chosen, [float(centres[index]) for index in chosen])
    return numbers


def _mean_correlation(curves: np.ndarray) -> float | None:
    """Return the mean correlation of two layers' curves [L, T]."""
    import numpy as np

    if len(curves) < 2:
        return None
    return float(np.corrcoef(curves)[np.triu_indices(len(curves), k=1)].mean())


def _compared(student: np.ndarray, teacher: np.ndarray) -> dict[str, float | None]:
    """Return how active a generator's layers [L] are beside the teacher's [L, T] at the same noise level."""
    import numpy as np

    ratio, at_most = student / np.maximum(teacher[:, 0], 1e-300), student / np.maximum(teacher.max(axis=-1), 1e-300)
    elsewhere = teacher.argmax(axis=-1) != 0
    numbers: dict[str, float | None] = {"to_largest": float(np.median(at_most))}
    for name, chosen in (("elsewhere", elsewhere), ("at_first_step", ~elsewhere)):
        found = ratio[chosen]
        numbers[f"ratio.{name}"] = float(np.median(found)) if len(found) else None
        numbers[f"above_teacher.{name}"] = float((found > 1).mean()) if len(found) else None
    return numbers


def verdict(factor: float | None, quarters: float | None) -> Verdict:
    """Return the verdict on one network, from the factor between the median ranges and the quarters with a peak."""
    if factor is None or quarters is None:
        return "undecided"
    if factor >= _CONFIRMED and quarters >= _QUARTERS:
        return "confirmed"
    return "contradicted" if factor <= _CONTRADICTED else "not confirmed"


def _draw(figure: Figure, *, arrays: Mapping[str, np.ndarray], teacher: str, students: Sequence[str]) -> None:
    figure.set_size_inches(7.2, 5.4 if students else 4.2)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.35 if students else 0.9))[:, 0]
    parts = list(dict.fromkeys(arrays["part"]))
    panels = upper.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, part, letter in zip(panels, parts, "ABCDEF", strict=False):
        _draw_curves(axes, arrays, teacher=teacher, part=part)
        axes.set_title(f"{letter}  {part}")
    panels[0].set_ylabel("relative activation (width: R)")
    depth_bar(upper, panels)
    rows = lower.subplots(2 if students else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_ranges(rows[0], arrays, teacher=teacher)
    if students:
        _draw_students(rows[1], arrays, teacher=teacher, students=students)
    labels, of_part = list(arrays["layers"]), list(arrays["part"])
    for axes in rows:
        block_axis(axes, labels, of_part)
    colours = [colour for part in parts for colour in depth_colours(of_part.count(part))]
    for tick, colour in zip(rows[-1].get_xticklabels(), colours, strict=True):
        tick.set_color(colour)


def _draw_curves(axes: Any, arrays: Mapping[str, np.ndarray], *, teacher: str, part: str) -> None:
    """One line per block of a part, its width by R."""
    curves, ranges = (arrays[f"{teacher}.{name}"].mean(axis=0) for name in ("relative", "range"))
    chosen = [index for index, each in enumerate(arrays["part"]) if each == part]
    most = max(float(ranges.max()), 1e-300)
    for index, colour in zip(chosen, depth_colours(len(chosen)), strict=True):
        width = 0.5 + 1.8 * float(ranges[index]) / most
        style = {"linestyle": "-" if ranges[index] > 0 else "--", "linewidth": width}
        axes.plot(curves[index], color=colour, alpha=0.9, **style)
    step_axis(axes, list(arrays["sigma"]))


def _draw_ranges(axes: Any, arrays: Mapping[str, np.ndarray], *, teacher: str) -> None:
    """R of each layer, trained and untrained."""
    for who, colour, marker in ((teacher, "C0", "o"), ("untrained", "C1", "s")):
        found = arrays[f"{who}.range"]
        for order, row in enumerate(found):
            label = None if order else who
            axes.plot(row, marker, color=colour, markersize=3.5, linestyle="none", label=label)
    if any((arrays[f"{who}.range"] > 0).any() for who in (teacher, "untrained")):
        decades(axes)
    axes.set_ylabel("range R")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_students(axes: Any, arrays: Mapping[str, np.ndarray], *, teacher: str, students: Sequence[str]) -> None:
    """Activation at the first noise level over the teacher's there; the teacher's largest as bars."""
    import numpy as np

    first = arrays[f"{teacher}.activation"][0]
    base = np.maximum(first[:, 0], 1e-300)
    axes.bar(range(len(base)), first.max(axis=-1) / base, color="C1", alpha=0.3, label=f"{teacher}, largest")
    for index, label in enumerate(students):
        found = arrays[f"{label}.activation"]
        for order, row in enumerate(found):
            name = None if order else label
            marker = "o^Dvs"[index % 5]
            axes.plot(row / base, marker, color=f"C{(index + 2) % 8}", markersize=3.5, linestyle="none", label=name)
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set_ylabel(f"over {teacher} at {arrays['sigma'][0]:g}")
    axes.set_ylim(bottom=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
