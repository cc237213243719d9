"""What studies of a network's blocks share: their options, the files that they read, a verdict, axes of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from onestep.config.constraints import Constraint, Text
from onestep.models import parse_model
from onestep.studies import Observable, RealImages, Verdict, Weights
from onestep.studies._arms import check_arms, described, finite, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Networks = Annotated[Mapping[Text, Annotated[tuple[Text, ...], Constraint(min_length=1)]], Constraint(min_length=1)]
"""The option `arms`: by label, networks that differ in the training seed; a teacher, `run@images`, or a run."""
Steps = Annotated[int, Constraint(ge=4, le=1_000)]
Batch = Annotated[int, Constraint(gt=0, le=4_096)]

IMAGES = "images"
"""Start of the name of the observable of real images."""
UNTRAINED = "untrained"
"""Label of the control."""


def check(arms: Mapping[str, Sequence[str]], *, teacher: str, seeds: str, levels: tuple[float, float]) -> None:
    """Refuse options that do not fit each other. ValueError: with the option in front."""
    check_arms(arms, named=[teacher])
    if UNTRAINED in arms:
        raise ValueError(f"arms: got the label {UNTRAINED!r}, expected another one, because it is that of the control")
    for label, models in arms.items():
        for model in models:
            try:
                parse_model(model)
            except ValueError as error:
                raise ValueError(f"arms.{label}: {error}") from error
    first, last = map(int, seeds.split("-"))
    if last < first:
        raise ValueError(f"seeds: got {seeds}, expected the first one first. Fix: write {last}-{first}")
    if levels[0] >= levels[1]:
        raise ValueError(f"sigma_min: got {levels[0]}, expected a noise level below sigma_max, which is {levels[1]}")


def block_of_seeds(seeds: str) -> range:
    """Return the seeds of a block `first-last`."""
    first, last = map(int, seeds.split("-"))
    return range(first, last + 1)


def observables(arms: Mapping[str, Sequence[str]], *, dataset: str | None = None) -> dict[str, Observable]:
    """Return the weights of all networks by their names, and the real images if there is a dataset."""
    found: dict[str, Observable] = {
        model: Weights(model=model, blocks=True) for models in arms.values() for model in models
    }
    return found | ({} if dataset is None else {f"{IMAGES}.{dataset}": RealImages(dataset=dataset)})


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
