"""Charts as inline SVG: lines with their names at their ends; colours and fonts come from the page's style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from onestep.report import axes, numbers
from onestep.report.axes import Scale

COLOURS = 8
"""Colours the style sheet knows (c0 to c7); further lines repeat them with a dash."""
LETTER = 0.64
"""Mean width of a letter, in font sizes: that of the widest of the page's fonts (DejaVu Sans)."""
ROW = 12.0
"""Height of a row of text."""
TOP, BOTTOM = 26.0, 40.0
"""Room above the plot for its title and below it for the x axis."""


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


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where the plot stands within a chart."""

    left: float
    right: float
    top: float
    bottom: float
    x: Scale
    y: Scale


def draw(chart: Chart) -> str:
    """Return a chart as an `<svg>` element. The same chart gives the same text."""
    needed = sum(_name_height(each.name, chart) for each in (*chart.lines, *chart.levels))
    chart = replace(chart, height=max(chart.height, math.ceil(needed + TOP + BOTTOM)))
    frame = _frame(chart)
    scale = " (log scale)" if frame.y.is_log else ""
    parts = [
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img">',
        f"<title>{html.escape(_spoken(chart))}</title>",
        f'<text class="name" x="0" y="13">{html.escape(chart.title)}<tspan class="aside">{scale}</tspan></text>',
        *_grid(frame),
        f'<text class="axis" x="{_n((frame.left + frame.right) / 2)}" y="{chart.height - 5}" '
        f'text-anchor="middle">{html.escape(chart.x_label)}</text>',
        *(_level(level, frame) for level in chart.levels),
        *(_line(line, frame) for line in chart.lines),
        *_names(chart, frame),
        "</svg>",
    ]
    return "\n".join(parts)


def _spoken(chart: Chart) -> str:
    ends = [f"{line.name} ends at {numbers.four_digits(line.points[-1][1])}" for line in chart.lines]
    levels = [f"{level.name} is {numbers.four_digits(level.value)}" for level in chart.levels]
    return f"{chart.title} over {chart.x_label}: {', '.join(ends + levels)}"


def _frame(chart: Chart) -> _Frame:
    ys = [y for line in chart.lines for _, y in line.points] + [level.value for level in chart.levels]
    xs = [x for line in chart.lines for x, _ in line.points] or [0.0, 1.0]
    names = [row for each in (*chart.lines, *chart.levels) for row in _rows(each.name, chart)]
    top, bottom = TOP, chart.height - BOTTOM
    y = (axes.logarithmic if axes.wants_log(ys) else axes.linear)(ys, start=bottom, end=top)
    left = 10 + max(_width(_tick(tick, y)) for tick in y.ticks)
    right = chart.width - 14 - max(_width(name) for name in names)
    x = axes.linear([0.0, *xs], start=left, end=right)
    return _Frame(left=left, right=right, top=top, bottom=bottom, x=_fitted(x, max(xs)), y=y)


def _fitted(scale: Scale, high: float) -> Scale:
    """Return the x scale cut at the last value, so that lines reach the edge where their names stand."""
    ticks = tuple(tick for tick in scale.ticks if tick <= high)
    return Scale(low=scale.low, high=high, start=scale.start, end=scale.end, is_log=False, ticks=ticks)


def _width(text: str, *, size: float = 11.0) -> float:
    return len(text) * size * LETTER


def _tick(value: float, scale: Scale) -> str:
    if scale.is_log or max(abs(tick) for tick in scale.ticks) >= 10_000:
        return numbers.short_count(value)
    places = max(numbers.places_in(numbers.plain(tick)) for tick in scale.ticks)
    return f"{value:.{places}f}".replace("-", numbers.MINUS)


def _grid(frame: _Frame) -> Iterable[str]:
    """Yield the ruled lines and the labels of the ticks."""
    for tick in frame.y.ticks:
        y = _n(frame.y(tick))
        yield f'<line class="rule" x1="{_n(frame.left)}" x2="{_n(frame.right)}" y1="{y}" y2="{y}"/>'
        label = html.escape(_tick(tick, frame.y))
        yield f'<text class="tick" x="{_n(frame.left - 6)}" y="{y}" dy=".35em" text-anchor="end">{label}</text>'
    for tick in frame.x.ticks:
        x, y = _n(frame.x(tick)), frame.bottom
        yield f'<line class="stub" x1="{x}" x2="{x}" y1="{_n(y)}" y2="{_n(y + 4)}"/>'
        label = numbers.short_count(tick)
        yield f'<text class="tick" x="{x}" y="{_n(y + 15)}" text-anchor="middle">{label}</text>'


def _level(level: Level, frame: _Frame) -> str:
    y = _n(frame.y(level.value))
    return (
        f'<line class="level {colour_class(level.colour)}" x1="{_n(frame.left)}" x2="{_n(frame.right)}" '
        f'y1="{y}" y2="{y}"/>'
    )


def _line(line: Line, frame: _Frame) -> str:
    places = [(_n(frame.x(x)), _n(frame.y(y))) for x, y in line.points]
    colour = colour_class(line.colour)
    path = f'<path class="line {colour}" d="M{" L".join(f"{x} {y}" for x, y in places)}"/>'
    if not line.marked and len(places) > 1:
        return path
    return path + "".join(f'<circle class="mark {colour}" cx="{x}" cy="{y}" r="3"/>' for x, y in places)


def _names(chart: Chart, frame: _Frame) -> Iterable[str]:
    """Yield the names at the right: each at the end of its line, moved apart where they would overlap."""
    ends = [(each.name, each.colour, each.points[-1]) for each in chart.lines]
    ends += [(each.name, each.colour, (frame.x.high, each.value)) for each in chart.levels]
    wanted = [frame.y(y) for _, _, (_, y) in ends]
    sizes = [_name_height(name, chart) for name, _, _ in ends]
    places = axes.spread_out(wanted, sizes=sizes, low=frame.top - 6, high=frame.bottom + 6)
    for (name, colour, (x, _)), at, place in zip(ends, wanted, places, strict=True):
        start, end = frame.x(x) + 3, frame.right + 9
        yield f'<path class="lead {colour_class(colour)}" d="M{_n(start)} {_n(at)} L{_n(end)} {_n(place)}"/>'
        yield _name(_rows(name, chart), colour=colour, x=frame.right + 12, y=place)


def _rows(name: str, chart: Chart) -> list[str]:
    return broken(name, letters=chart.width // 20)


def _name_height(name: str, chart: Chart) -> float:
    return ROW * len(_rows(name, chart)) + 1


def _name(rows: Sequence[str], *, colour: int, x: float, y: float) -> str:
    first = y - ROW / 2 * (len(rows) - 1)
    spans = "".join(
        f'<tspan x="{_n(x)}" y="{_n(first + ROW * index)}" dy=".35em">{html.escape(row)}</tspan>'
        for index, row in enumerate(rows)
    )
    return f'<text class="label {colour_class(colour)}">{spans}</text>'


def broken(name: str, *, letters: int) -> list[str]:
    """Break a name behind spaces, hyphens and underscores into rows of at most `letters`, if that can be."""
    rows = [""]
    for part in _parts(name):
        if rows[-1] and len(rows[-1]) + len(part.rstrip()) > letters:
            rows.append("")
        rows[-1] += part
    return [row.rstrip() for row in rows]


def _parts(name: str) -> list[str]:
    """Split behind each space, hyphen and underscore."""
    parts = [""]
    for character in name:
        parts[-1] += character
        if character in " -_":
            parts.append("")
    return [part for part in parts if part]


def colour_class(index: int) -> str:
    """Return the style sheet's class of a colour; the second round of colours is dashed."""
    return f"c{index % COLOURS}" + (" again" if index >= COLOURS else "")


def _n(value: float) -> str:
    """Return a coordinate with one decimal."""
    return f"{value:.1f}"
