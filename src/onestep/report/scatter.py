"""Charts of single points over a logarithmic x axis as inline SVG, their names right of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from onestep.report import axes, numbers
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

RADIUS = 3.5
NAME_GAP = 14.0
"""Room between a point and its name, for the line that leads there."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A number.

    Attributes:
        name: What stands beside it.
        x, y: Where it is; x > 0.
        colour: An index.
        reach: The least and the greatest of the numbers it stands for, drawn as a bar; None where it is the only one.
        hollow: Whether it is somebody else's number.
        named: Whether its name is drawn; it is not where another point of this name says enough.
    """

    name: str
    x: float
    y: float
    colour: int
    reach: tuple[float, float] | None = None
    hollow: bool = False
    named: bool = True


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """A figure of points.

    Attributes:
        title: What y is, with its unit.
        x_label: What x is, with its unit.
        points: At least one.
        width, height: In user units, text being 11 units high; many names make a chart higher.
    """

    title: str
    x_label: str
    points: tuple[Point, ...]
    width: int = 440
    height: int = 270

    @property
    def named(self) -> tuple[Point, ...]:
        """The points whose names are drawn."""
        return tuple(point for point in self.points if point.named)


def draw_points(scatter: Scatter) -> str:
    """Return a chart as an `<svg>` element. The same chart gives the same text."""
    names = (point.name for point in scatter.named)
    scatter = replace(scatter, height=grown(scatter.height, names, width=scatter.width))
    frame = _frame(scatter)
    bars = (_bar(point, frame) for point in scatter.points if point.reach is not None)
    labels = (text for group in _groups(scatter, frame) for text in _names(group, scatter, frame))
    # Hollow ones below: where both are at one place, ours is seen within the other's ring.
    marks = (_mark(point, frame) for point in sorted(scatter.points, key=lambda point: not point.hollow))
    return svg(
        frame,
        kind="chart points",
        size=(scatter.width, scatter.height),
        title=scatter.title,
        x_label=scatter.x_label,
        spoken=_spoken(scatter),
        marks=(*bars, *labels, *marks),
    )


def _spoken(scatter: Scatter) -> str:
    told = [
        f"{point.name} {'published ' if point.hollow else ''}{numbers.four_digits(point.y)} at {point.x:.15g}"
        for point in scatter.points
    ]
    return f"{scatter.title} over {scatter.x_label}: {', '.join(told)}"


def _frame(scatter: Scatter) -> Frame:
    ys = [y for point in scatter.points for y in (point.y, *(point.reach or ()))]
    top, bottom = TOP, scatter.height - BOTTOM
    y = (axes.logarithmic if axes.wants_log(ys) else axes.linear)(ys, start=bottom, end=top)
    left = 10 + max(text_width(tick_text(tick, y)) for tick in y.ticks)
    right = scatter.width - 2 - NAME_GAP - max(_name_width(point, scatter) for point in scatter.named)
    x = axes.logarithmic([point.x for point in scatter.points], start=left, end=right)
    return Frame(left=left, right=right, top=top, bottom=bottom, x=x, y=y)


def _name_width(point: Point, scatter: Scatter) -> float:
    return max(map(text_width, name_rows(point.name, width=scatter.width)))


def _groups(scatter: Scatter, frame: Frame) -> list[list[Point]]:
    """Return the points by columns, the left one first; columns whose names would run into the next are one group."""
    columns = sorted({point.x for point in scatter.points})
    groups: list[list[Point]] = []
    for x in columns:
        here = [point for point in scatter.points if point.x == x]
        while groups and _end(groups[-1], scatter, frame) > frame.x(x) - 2 * RADIUS:
            here = groups.pop() + here
        groups.append(here)
    return groups


def _end(group: Sequence[Point], scatter: Scatter, frame: Frame) -> float:
    """Return where the names of a group end."""
    widest = max((_name_width(point, scatter) for point in group if point.named), default=0.0)
    return _names_start(group, frame) + widest


def _names_start(group: Sequence[Point], frame: Frame) -> float:
    return max(frame.x(point.x) for point in group) + NAME_GAP


def _names(group: Sequence[Point], scatter: Scatter, frame: Frame) -> Iterable[str]:
    """Yield the names of a group: right of its last column, moved apart where they would overlap."""
    named = [point for point in group if point.named]
    wanted = [frame.y(point.y) for point in named]
    sizes = [name_height(point.name, width=scatter.width) for point in named]
    places = axes.spread_out(wanted, sizes=sizes, low=frame.top - 6, high=frame.bottom + 6)
    x = _names_start(group, frame)
    for point, own, place in zip(named, wanted, places, strict=True):
        start = frame.x(point.x) + RADIUS
        yield f'<path class="lead {colour_class(point.colour)}" d="M{at(start)} {at(own)} L{at(x - 3)} {at(place)}"/>'
        yield name_text(name_rows(point.name, width=scatter.width), colour=point.colour, x=x, y=place)


def _bar(point: Point, frame: Frame) -> str:
    assert point.reach is not None, point
    x, low, high = at(frame.x(point.x)), *map(at, map(frame.y, point.reach))
    return f'<line class="reach {colour_class(point.colour)}" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'


def _mark(point: Point, frame: Frame) -> str:
    kind = "hollow" if point.hollow else "mark"
    place = f'cx="{at(frame.x(point.x))}" cy="{at(frame.y(point.y))}" r="{RADIUS:g}"'
    return f'<circle class="{kind} {colour_class(point.colour)}" {place}/>'
