"""What studies of a network's blocks share: their options, the files that they read, a verdict, axes of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from onestep.config.constraints import Constraint, Positive, SeedBlock, SmallCount, Text, seeds_of
from onestep.models import parse_model
from onestep.studies import Observable, Verdict, Weights
from onestep.studies._arms import LEAST_SEEDS, check_arms, described, finite, spread

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from onestep.sampling.heun import Heun
    from onestep.studies._hooks import Block

Networks = Annotated[Mapping[Text, Annotated[tuple[Text, ...], Constraint(min_length=1)]], Constraint(min_length=1)]
"""The option `arms`: by label, networks that differ in the training seed; a teacher, `run@images`, or a run."""
Steps = Annotated[int, Constraint(ge=4, le=1_000)]
Batch = Annotated[int, Constraint(gt=0, le=4_096)]

UNTRAINED = "untrained"
"""Label of the control."""


@dataclass(frozen=True, kw_only=True)
class StudyOfBlocks:
    """The options of a study of a network's blocks along the trajectory of a teacher.

    Attributes:
        arms: Networks by label: the teacher, and one-step generators that start from it.
        teacher: The label of the teacher.
        seeds: One block of image seeds.
        steps: Of the sampler from `sigma_max` to `sigma_min`; generators are observed at `sigma_max`.
        batch: Images that pass through a network at once.
        least_trainings: Fewest networks of the teacher for a verdict; 1 for a published one.
    """

    arms: Networks
    teacher: Text
    seeds: SeedBlock = "0-255"
    steps: Steps = 18  # this and the next three: EDM on CIFAR-10 (arXiv:2206.00364, table 1)
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0
    batch: Batch = 64
    least_trainings: SmallCount = LEAST_SEEDS

    def __post_init__(self) -> None:
        check_arms(self.arms, named=[self.teacher])
        if UNTRAINED in self.arms:
            another = "expected another one, because it is that of the control"
            raise ValueError(f"arms: got the label {UNTRAINED!r}, {another}")
        for label, models in self.arms.items():
            for model in models:
                try:
                    parse_model(model)
                except ValueError as error:
                    raise ValueError(f"arms.{label}: {error}") from error
        if not self.block:
            turned = f"{self.block.stop - 1}-{self.block.start}"
            raise ValueError(f"seeds: got {self.seeds}, expected the first one first. Fix: write {turned}")
        if self.sigma_min >= self.sigma_max:
            below = f"expected a noise level below sigma_max, which is {self.sigma_max}"
            raise ValueError(f"sigma_min: got {self.sigma_min}, {below}")

    @property
    def block(self) -> range:
        """The image seeds."""
        return seeds_of(self.seeds)

    def sampler(self) -> Heun:
        """Return the deterministic sampler of the trajectory."""
        from onestep.sampling.heun import Heun

        levels = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}
        return Heun(steps=self.steps, precision="float32", **levels)

    def observes(self) -> Mapping[str, Observable]:
        """Return the weights of all networks by their names."""
        return {model: Weights(model=model, blocks=True) for models in self.arms.values() for model in models}


def places(levels: Sequence[float], blocks: Sequence[Block]) -> dict[str, np.ndarray]:
    """Return the noise levels `sigma` [T], and `layers`, `part` and `resolution` of the blocks [L]."""
    import numpy as np

    return {
        "sigma": np.array(levels),
        "layers": np.array([block.label for block in blocks]),
        "part": np.array([block.part for block in blocks]),
        "resolution": np.array([block.resolution for block in blocks], dtype=np.int64),
    }


def agreed(verdicts: Sequence[Verdict], *, least: int) -> Verdict:
    """Return the verdict that all trainings of a teacher share; `undecided` for fewer than `least`."""
    if len(verdicts) < least:
        return "undecided"
    return verdicts[0] if len(set(verdicts)) == 1 else "not confirmed"


def over_trainings(found: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Return mean and deviation over trainings of each number that all of them have."""
    numbers: dict[str, float] = {}
    for key in found[0]:
        values = [value for each in found if (value := each.get(key)) is not None]
        if len(values) == len(found):
            numbers |= described(key, spread(values))
    return finite(numbers)


def depth_map() -> Colormap:
    """Return colours from red, the first block, to blue, the last one; each is visible on white and on black."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("depth", ["#d0402b", "#b05a9c", "#2b7fc3"])


def depth_colours(count: int) -> list[Any]:
    """Return a colour of `depth_map` for each block of a part."""
    return [depth_map()(index / max(count - 1, 1)) for index in range(count)]


def depth_bar(figure: Figure, axes: Sequence[Axes]) -> None:
    """Draw the colour bar of `depth_map`."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=depth_map()), ax=list(axes), aspect=30, pad=0.01)
    bar.set_ticks([0, 0.5, 1], labels=["first", "middle", "last"])
    bar.set_label("block, in running order")
    bar.outline.set_visible(False)


def step_axis(axes: Axes, levels: Sequence[float], *, most: int = 6) -> None:
    """Label the steps of a trajectory by some of their noise levels."""
    chosen = sorted({round(index * (len(levels) - 1) / (most - 1)) for index in range(most)})
    axes.set_xticks(chosen, [f"{levels[index]:.2g}" for index in chosen])
    axes.set_xlabel("noise level of the step")


def decades(axes: Axes) -> None:
    """Scale the vertical axis logarithmically, with plain numbers at its decades."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def block_axis(axes: Axes, labels: Sequence[str], parts: Sequence[str]) -> None:
    """Label a block for each whole number of the horizontal axis, with lines between the network's parts."""
    axes.set_xticks(range(len(labels)), [label.rpartition(".")[2] for label in labels], rotation=60, ha="right")
    axes.tick_params(axis="x", labelsize=7 if len(labels) <= 20 else 5.5, rotation=60)
    for tick in axes.get_xticklabels():
        tick.set_rotation_mode("anchor")
    axes.set_xlim(-0.7, len(labels) - 0.3)
    starts = [index for index in range(len(parts)) if index == 0 or parts[index] != parts[index - 1]]
    for start in starts:
        if start:
            axes.axvline(start - 0.5, color="0.5", linewidth=0.6, linestyle=":")
        axes.text(start - 0.4, 1.02, parts[start], transform=axes.get_xaxis_transform(), color="0.5", fontsize=7)
