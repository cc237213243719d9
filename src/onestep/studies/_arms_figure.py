"""The figure of studies that compare arms: a value against images seen, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onestep.studies._arms import Curve, Curves, Spread, mean_curve, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_MOST_INSIDE = 5  # entries of a legend between the curves
_ROW_INCHES = 0.18  # of a legend below the axes


def draw_curves(
    axes: Axes, curves: Curves, *, label: str, levels: Mapping[str, float] | None = None, across: str = "images seen"
) -> None:
    """Draw the mean of each arm over images on logarithmic axes, with bars of its deviation, and dashed levels.

    `across` is what the curves have in the place of images seen.
    """
    curves = _after_start(curves)
    positive = all(mean > 0 for group in curves.values() for each in group for mean in each.means)
    for index, (name, group) in enumerate(curves.items()):
        points = [spread(values) for values in mean_curve(group).blocks]
        means, bars = [each.mean for each in points], [each.deviation or 0.0 for each in points]
        below = [bar_below(each) if positive else each.deviation or 0.0 for each in points]
        axes.errorbar(group[0].images, means, yerr=(below, bars), label=name, markersize=3, capsize=1.5, **line(index))
    for index, (name, level) in enumerate((levels or {}).items()):
        axes.axhline(level, color="0.5", linestyle=("--", ":", "-.")[index % 3], linewidth=1, label=name)
    reach = [value for each in curves.values() for curve in each for value in curve.means]
    axes.set_xscale("log")
    few_ticks(axes.xaxis, [n for group in curves.values() for n in group[0].images], shown=counted)
    if positive:
        axes.set_yscale("log")
        few_ticks(axes.yaxis, reach)
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.legend()


def legend_below(figure: Figure, axes: Axes, *, columns: int) -> None:
    """Put the legend of axes below all axes of a figure, which becomes higher by its rows."""
    if (inside := axes.get_legend()) is not None:
        inside.remove()
    handles, labels = axes.get_legend_handles_labels()
    figure.set_figheight(figure.get_figheight() + _ROW_INCHES * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def look(index: int) -> dict[str, Any]:
    """Return marker and colour of an arm by its place among the arms, for matplotlib."""
    return {"marker": "osD^v"[index // 8 % 5], "color": f"C{index % 8}"}


def line(index: int) -> dict[str, Any]:
    """Return marker, colour and stroke of the curve of an arm by its place among the arms, for matplotlib."""
    return {**look(index), "linestyle": ("-", "--", ":")[index // 8 % 3]}


def bar_below(point: Spread) -> float:
    """Return the length of a bar of the deviation below a mean: on a logarithmic axis it must end above 0."""
    return min(point.deviation or 0.0, 0.9 * abs(point.mean))


def _after_start(curves: Curves) -> Curves:
    """Return curves without the snapshots at 0 images, which have no place on a logarithmic axis."""
    return {label: tuple(map(_without_start, group)) for label, group in curves.items()}


def _without_start(curve: Curve) -> Curve:
    kept = [(n, point) for n, point in zip(curve.images, curve.blocks, strict=True) if n]
    return replace(curve, images=tuple(n for n, _ in kept), blocks=tuple(point for _, point in kept))


def few_ticks(axis: Axis, values: Sequence[float], *, shown: Callable[[float], str] = "{:g}".format) -> None:
    """Give a logarithmic axis few ticks, whatever the range of its values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    decades = math.log10(max(values) / min(values))
    within = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0) if decades > 0.7 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=within))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))


def counted(value: float) -> str:
    """Return a count as a tick has it: 20k, 1.5M."""
    size, suffix = next(((s, t) for s, t in ((1e6, "M"), (1e3, "k")) if value >= s), (1.0, ""))
    return f"{value / size:g}{suffix}"


def drawing(curves: Curves, *, label: str, levels: Mapping[str, float] | None = None) -> Callable[[Figure], None]:
    """Return the function that draws the curves of all arms as a figure."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        draw_curves(axes, curves, label=label, levels=levels)
        if len(axes.get_legend_handles_labels()[1]) > _MOST_INSIDE:
            legend_below(figure, axes, columns=2)

    return draw
