"""Charts drawn by matplotlib: curves over images seen, and numbers against NFE."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onestep.figures import COLOURS, SOFT, style
from onestep.report import numbers

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_MARKERS = "osD^v"
_LABEL_WIDTH = 0.1  # of the x axis


@dataclass(frozen=True, kw_only=True)
class Series:
    """One entry of a chart's legend.

    Attributes:
        points: (x, y), x ascending. A level has one y, drawn across the chart.
        colour: Index of its colour; from the ninth on, the marker differs.
        kind: A line, a line with markers, a level to compare with, a measured point, or a published number.
        reach: The least and greatest of the values that a point summarizes, drawn as a bar.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    kind: Literal["line", "marked", "level", "point", "published"] = "line"
    reach: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with at least one series.

    Attributes:
        title: The quantity on the y axis.
        kind: A distance or loss, logarithmic where positive values span more than a decade; a share, from 0 to 1; or
            another quantity, linear.
        size: Width and height of the plot in px; the legend adds to the height.
    """

    title: str
    x: Literal["images", "nfe"]
    series: tuple[Series, ...]
    kind: Literal["distance", "share", "quantity"] = "distance"
    size: tuple[int, int] = (440, 250)

    @property
    def values(self) -> list[float]:
        """All values on the y axis."""
        return [y for each in self.series for y in (*(y for _, y in each.points), *(each.reach or ()))]

    @property
    def is_log(self) -> bool:
        """Whether y is logarithmic."""
        values = self.values
        return self.kind == "distance" and min(values) > 0 and max(values) / min(values) > 10

    @property
    def description(self) -> str:
        """The chart in words, for readers who do not see it."""
        over = "images seen" if self.x == "images" else "NFE"
        return f"{self.title} over {over}: {', '.join(map(self._end, self.series))}"

    def _end(self, series: Series) -> str:
        x, y = series.points[-1]
        name, value = f"{series.name}{', published' * (series.kind == 'published')}", numbers.four_digits(y)
        return f"{name} {value}" if series.kind == "level" else f"{name} {value} at {numbers.short_count(x)}"


def draw(charts: Sequence[Chart]) -> Figure:
    """Return a figure with the charts below each other; without charts, one line of text."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with style():
        heights = [chart.size[1] + _legend_height(chart) for chart in charts] or [30]
        width = max((chart.size[0] for chart in charts), default=440)
        figure = Figure(figsize=(width / 96, sum(heights) / 96), dpi=96, layout="constrained")
        FigureCanvasSVG(figure)
        if not charts:
            figure.text(0.01, 0.5, "Nothing measured yet.", color=SOFT, va="center")
            return figure
        parts = figure.subfigures(len(charts), 1, squeeze=False, height_ratios=heights)
        for part, chart in zip(parts[:, 0], charts, strict=True):
            _draw(chart, part)
        return figure


def _legend_columns(chart: Chart) -> int:
    longest = max(len(each.name) for each in chart.series)
    return max(1, min(len(_legend(chart)), chart.size[0] // (7 * longest + 40)))


def _legend_height(chart: Chart) -> int:
    return 10 + 17 * math.ceil(len(_legend(chart)) / _legend_columns(chart))


def _legend(chart: Chart) -> list[Series]:
    """Return the series with an entry in the legend; a measured and a published number of one row share theirs."""
    entries: dict[tuple[str, int], Series] = {}
    for each in chart.series:
        entries.setdefault((each.name, each.colour), each)
    return list(entries.values())


def _draw(chart: Chart, part: SubFigure) -> None:
    axes = part.add_subplot()
    handles: dict[int, Artist] = {id(each): _plot(axes, each) for each in chart.series}
    axes.set_title(textwrap.fill(f"{chart.title}{' (log scale)' * chart.is_log}", width=chart.size[0] // 7))
    _scale_x(axes, chart)
    _scale_y(axes, chart)
    entries = _legend(chart)
    shown, names = [handles[id(each)] for each in entries], [each.name for each in entries]
    part.legend(shown, names, loc="outside lower left", ncols=_legend_columns(chart))


def _plot(axes: Axes, series: Series) -> Artist:
    """Draw a series and return its handle for the legend."""
    colour, xs, ys = COLOURS[series.colour % len(COLOURS)], *zip(*series.points, strict=True)
    again = series.colour // len(COLOURS) % len(_MARKERS)
    if series.kind == "level":
        return axes.axhline(ys[0], color=colour, linestyle=(0, (4, 3)))
    if series.kind in ("line", "marked"):
        marker = _MARKERS[again] if series.kind == "marked" or len(xs) == 1 else None
        dash = "-" if again == 0 else (0, (1 + again, 1.5))
        return axes.plot(xs, ys, color=colour, marker=marker, linestyle=dash)[0]
    if series.reach is not None:
        axes.vlines(xs, *series.reach, color=colour, alpha=0.6)
    face = "none" if series.kind == "published" else colour
    size = 7.0 if series.kind == "published" else 5.5  # a published number stays visible around a measured one
    return axes.plot(
        xs, ys, linestyle="none", marker=_MARKERS[again], markersize=size, color=colour, markerfacecolor=face
    )[0]


def _scale_x(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    xs = sorted({x for each in chart.series if each.kind != "level" for x, _ in each.points})
    if chart.x == "images":
        axes.set_xlabel("images seen in training")
        axes.set_xlim(0, max(1, xs[-1]) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(_count)
        return
    axes.set_xlabel("NFE (function evaluations per image, log scale)")
    axes.set_xscale("log")
    axes.set_xlim(xs[0] / 1.6, xs[-1] * 1.6)
    gap = (1.6**2 * xs[-1] / xs[0]) ** _LABEL_WIDTH
    labelled = xs[:1]
    for x in xs[1:]:
        if x / labelled[-1] >= gap:
            labelled.append(x)
    axes.xaxis.set_major_locator(FixedLocator(labelled))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_count)


def _scale_y(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if chart.kind == "share":
        axes.set_ylim(0, 1)
    elif chart.is_log:
        axes.set_yscale("log")
        decades = math.log10(max(chart.values) / min(chart.values))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(_count)
    elif max(map(abs, chart.values)) >= 10_000:
        axes.yaxis.set_major_formatter(_count)


def _count(value: float, position: float) -> str:
    return numbers.short_count(value)
