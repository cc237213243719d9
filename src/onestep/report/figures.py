"""Charts as inline SVG: lines with their names at their ends; colours and fonts come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from onestep.report import axes, numbers
from onestep.report.axes import Scale
from onestep.report.strokes import (
    BOTTOM,
    TOP,
    Frame,
    at,
    colour_class,
    grown,
    name_height,
    name_rows,
    name_text,
    svg,
    text_width,
    tick_text,
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve: `points` (x, y), x ascending; `colour` an index; `marked` draws the points too."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Level:
    """A value to compare with, drawn as a dashed line across the chart."""

    name: str
    value: float
    colour: int


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with one x axis and one y axis.

    Attributes:
        title: What y is, with its unit.
        x_label: What x is, with its unit.
        lines: The curves; at least one line or level.
        levels: Values to compare with.
        width, height: In user units, text being 11 units high; many names make a chart higher.
    """

    title: str
    x_label: str
    lines: tuple[Line, ...]
    levels: tuple[Level, ...] = ()
    width: int = 336
    height: int = 220


def draw(chart: Chart) -> str:
    """Return a chart as an `<svg>` element. The same chart gives the same text."""
    names = (each.name for each in (*chart.lines, *chart.levels))
    chart = replace(chart, height=grown(chart.height, names, width=chart.width))
    frame = _frame(chart)
    levels = (_level(level, frame) for level in chart.levels)
    lines = (_line(line, frame) for line in chart.lines)
    return svg(
        frame,
        kind="chart",
        size=(chart.width, chart.height),
        title=chart.title,
        x_label=chart.x_label,
        spoken=_spoken(chart),
        marks=(*levels, *lines, *_names(chart, frame)),
    )


def _spoken(chart: Chart) -> str:
    ends = [f"{line.name} ends at {numbers.four_digits(line.points[-1][1])}" for line in chart.lines]
    levels = [f"{level.name} is {numbers.four_digits(level.value)}" for level in chart.levels]
    return f"{chart.title} over {chart.x_label}: {', '.join(ends + levels)}"


def _frame(chart: Chart) -> Frame:
    ys = [y for line in chart.lines for _, y in line.points] + [level.value for level in chart.levels]
    xs = [x for line in chart.lines for x, _ in line.points] or [0.0, 1.0]
    names = [row for each in (*chart.lines, *chart.levels) for row in name_rows(each.name, width=chart.width)]
    top, bottom = TOP, chart.height - BOTTOM
    y = (axes.logarithmic if axes.wants_log(ys) else axes.linear)(ys, start=bottom, end=top)
    left = 10 + max(text_width(tick_text(tick, y)) for tick in y.ticks)
    right = chart.width - 14 - max(text_width(name) for name in names)
    x = axes.linear([0.0, *xs], start=left, end=right)
    return Frame(left=left, right=right, top=top, bottom=bottom, x=_fitted(x, max(xs)), y=y)


def _fitted(scale: Scale, high: float) -> Scale:
    """Return the x scale cut at the last value, so that lines reach the edge where their names stand."""
    ticks = tuple(tick for tick in scale.ticks if tick <= high)
    return Scale(low=scale.low, high=high, start=scale.start, end=scale.end, is_log=False, ticks=ticks)


def _level(level: Level, frame: Frame) -> str:
    y = at(frame.y(level.value))
    return (
        f'<line class="level {colour_class(level.colour)}" x1="{at(frame.left)}" x2="{at(frame.right)}" '
        f'y1="{y}" y2="{y}"/>'
    )


def _line(line: Line, frame: Frame) -> str:
    places = [(at(frame.x(x)), at(frame.y(y))) for x, y in line.points]
    colour = colour_class(line.colour)
    path = f'<path class="line {colour}" d="M{" L".join(f"{x} {y}" for x, y in places)}"/>'
    if not line.marked and len(places) > 1:
        return path
    return path + "".join(f'<circle class="mark {colour}" cx="{x}" cy="{y}" r="3"/>' for x, y in places)


def _names(chart: Chart, frame: Frame) -> Iterable[str]:
    """Yield the names at the right: each at the end of its line, moved apart where they would overlap."""
    ends = [(each.name, each.colour, each.points[-1]) for each in chart.lines]
    ends += [(each.name, each.colour, (frame.x.high, each.value)) for each in chart.levels]
    wanted = [frame.y(y) for _, _, (_, y) in ends]
    sizes = [name_height(name, width=chart.width) for name, _, _ in ends]
    places = axes.spread_out(wanted, sizes=sizes, low=frame.top - 6, high=frame.bottom + 6)
    for (name, colour, (x, _)), own, place in zip(ends, wanted, places, strict=True):
        start, end = frame.x(x) + 3, frame.right + 9
        yield f'<path class="lead {colour_class(colour)}" d="M{at(start)} {at(own)} L{at(end)} {at(place)}"/>'
        yield name_text(name_rows(name, width=chart.width), colour=colour, x=frame.right + 12, y=place)
