"""What charts are drawn from: frames, ruled lines, names; colours and fonts come from a style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onestep.report import numbers
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
class Frame:
    """Where the plot stands within a chart."""

    left: float
    right: float
    top: float
    bottom: float
    x: Scale
    y: Scale


def text_width(text: str, *, size: float = 11.0) -> float:
    """Return about how wide a text is, rather too much than too little."""
    return len(text) * size * LETTER


def tick_text(value: float, scale: Scale) -> str:
    """Return the label of a tick, with as many decimals as those beside it."""
    if scale.is_log or max(abs(tick) for tick in scale.ticks) >= 10_000:
        return numbers.short_count(value)
    places = max(numbers.places_in(numbers.plain(tick)) for tick in scale.ticks)
    return f"{value:.{places}f}".replace("-", numbers.MINUS)


def grown(height: int, names: Iterable[str], *, width: int) -> int:
    """Return the height of a chart, or more where its names need it."""
    needed = sum(name_height(name, width=width) for name in names)
    return max(height, math.ceil(needed + TOP + BOTTOM))


def svg(
    frame: Frame, *, kind: str, size: tuple[int, int], title: str, x_label: str, spoken: str, marks: Iterable[str]
) -> str:
    """Return a chart as an `<svg>` element: title, ruled lines, the x axis's label, and its marks above them.

    Args:
        frame: Where the plot stands.
        kind: The style sheet's classes of the chart.
        size: Width and height.
        title: What y is, with its unit.
        x_label: What x is, with its unit.
        spoken: The chart in words.
        marks: What is drawn, the lowest first.
    """
    width, height = size
    parts = [
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{html.escape(spoken)}</title>",
        f'<text class="name" x="0" y="13">{html.escape(title)}<tspan class="aside">{_kind_of(frame.y)}</tspan></text>',
        *_ruled(frame),
        f'<text class="axis" x="{at((frame.left + frame.right) / 2)}" y="{height - 5}" '
        f'text-anchor="middle">{html.escape(x_label)}{_kind_of(frame.x)}</text>',
        *marks,
        "</svg>",
    ]
    return "\n".join(parts)


def _kind_of(scale: Scale) -> str:
    return " (log scale)" if scale.is_log else ""


def _ruled(frame: Frame) -> Iterable[str]:
    """Yield the ruled lines and the labels of the ticks."""
    for tick in frame.y.ticks:
        y = at(frame.y(tick))
        yield f'<line class="rule" x1="{at(frame.left)}" x2="{at(frame.right)}" y1="{y}" y2="{y}"/>'
        label = html.escape(tick_text(tick, frame.y))
        yield f'<text class="tick" x="{at(frame.left - 6)}" y="{y}" dy=".35em" text-anchor="end">{label}</text>'
    for tick in frame.x.ticks:
        x, y = at(frame.x(tick)), frame.bottom
        yield f'<line class="stub" x1="{x}" x2="{x}" y1="{at(y)}" y2="{at(y + 4)}"/>'
        label = numbers.short_count(tick)
        yield f'<text class="tick" x="{x}" y="{at(y + 15)}" text-anchor="middle">{label}</text>'


def name_rows(name: str, *, width: int) -> list[str]:
    """Return the rows of a name in a chart of this width."""
    return broken(name, letters=width // 20)


def name_height(name: str, *, width: int) -> float:
    """Return the height that a name takes, with a little air."""
    return ROW * len(name_rows(name, width=width)) + 1


def name_text(rows: Sequence[str], *, colour: int, x: float, y: float) -> str:
    """Return a name whose middle stands at `y`."""
    first = y - ROW / 2 * (len(rows) - 1)
    spans = "".join(
        f'<tspan x="{at(x)}" y="{at(first + ROW * index)}" dy=".35em">{html.escape(row)}</tspan>'
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


def at(value: float) -> str:
    """Return a coordinate with one decimal."""
    return f"{value:.1f}"
