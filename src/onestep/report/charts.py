"""Charts: a metric over training, a metric against NFE, and what runs logged; drawn by matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from onestep.escapes import one_line
from onestep.figures import COLOURS, SOFT, style
from onestep.report import numbers
from onestep.report.evidence import Evidence, RunEvidence, TableEvidence
from onestep.report.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MOST_POINTS = 120
"""A longer log is drawn as means over equal numbers of records."""
_MARKERS = "osD^v"
_LABEL_WIDTH = 0.1  # of the x axis
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One entry of a chart's legend: a line, a level to compare with, a measured point, or a published number."""

    name: str
    points: tuple[tuple[float, float], ...]  # (x, y), x ascending; a level has one y, drawn across the chart
    colour: int  # index of its colour; from the ninth on, the marker differs
    kind: Literal["line", "marked", "level", "point", "published"] = "line"
    reach: tuple[float, float] | None = None  # least and greatest of the values that a point summarizes, as a bar


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with at least one series.

    A distance or loss is logarithmic where positive values span more than a decade; a share goes from 0 to 1; any other
    quantity is linear.
    """

    title: str  # the quantity on the y axis
    x: Literal["images", "nfe"]
    series: tuple[Series, ...]
    kind: Literal["distance", "share", "quantity"] = "distance"
    size: tuple[int, int] = (440, 250)  # of the plot in px; the legend adds to the height
    images: float = 0.0  # least end of an x axis in images, so that the charts of one training have the same

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


def row_name(row: Row, *, table: Table) -> str:
    """Return a row's label, extended by NFE, EMA and run where other rows of its dataset have the same label."""
    same = [each for each in table.rows if (each.label, each.dataset) == (row.label, row.dataset)]
    name = one_line(row.label)
    for fact in (_nfe_text, _ema_text, _run_text):
        alike = [each for each in same if fact(each) == fact(row)]
        name += f", {fact(row)}" if len(alike) < len(same) and fact(row) else ""
        same = alike
    return name


def _nfe_text(row: Row) -> str:
    return "" if row.nfe is None else f"NFE {row.nfe}"


def _ema_text(row: Row) -> str:
    return "" if row.ema is None else f"EMA {row.ema:,.15g}"


def _run_text(row: Row) -> str:
    return row.run or ""


def run_names(evidence: Evidence) -> dict[str, str]:
    """Return one name for each run: the label of its rows, with its own name where other runs share the label."""
    labels: dict[str, set[str]] = {}
    for row in (row for shown in evidence.tables for row in shown.table.rows):
        for run in (row.run,) if row.run is not None and not row.runs else ():
            labels.setdefault(run, set()).add(one_line(row.label))
    names = {}
    for run in evidence.experiment.runs:
        label = min(labels[run]) if len(labels.get(run, ())) == 1 else run
        others = [each for each in labels if each != run and label in labels[each]]
        names[run] = label if label == run or not others else f"{label}, {run}"
    return names


def run_colours(evidence: Evidence) -> dict[str, int]:
    """Return one colour for each run: that of its first row in a table, or a free one."""
    colours: dict[str, int] = {}
    for shown in evidence.tables:
        for index, row in enumerate(shown.table.rows):
            for run in row.runs or filter(None, [row.run]):
                colours.setdefault(run, index)
    free = max((len(shown.table.rows) for shown in evidence.tables), default=0)
    others = [run.name for run in evidence.runs if run.name not in colours]
    return colours | {run: free + place for place, run in enumerate(others)}


def metric_charts(shown: TableEvidence) -> list[Chart]:
    """Return a column over training, one chart for each dataset with a run of several snapshots.

    Rows with several snapshots are lines, other rows levels: a dashed line each.
    """
    table, found = shown.table, []
    for dataset in dict.fromkeys(row.dataset for row in table.rows):
        series = []
        for colour, (row, points) in enumerate(zip(table.rows, shown.curves, strict=True)):
            if row.dataset == dataset and points:
                kind: Literal["marked", "level"] = "marked" if len(points) > 1 else "level"
                series.append(Series(name=row_name(row, table=table), points=points, colour=colour, kind=kind))
        if any(each.kind == "marked" for each in series):
            found.append(_column_chart(table, x="images", series=series, dataset=dataset))
    return found


def _column_chart(
    table: Table, *, x: Literal["images", "nfe"], series: Sequence[Series], dataset: str | None = None
) -> Chart:
    """Return the chart of the drawn column: a distance, or where higher is better a share in [0, 1] or a quantity."""
    direction = table.directions[table.drawn]
    of = "" if dataset is None or table.dataset is not None else f" of {dataset}"
    chart = Chart(title=f"{numbers.heading(table.drawn)}{of}, {direction} is better", x=x, series=tuple(series))
    if direction == "lower":
        return chart
    return replace(chart, kind="share" if all(0 <= value <= 1 for value in chart.values) else "quantity")


def nfe_charts(table: Table) -> list[Chart]:
    """Return the drawn column against NFE: one chart for each dataset with numbers of at least two NFE.

    Published numbers are hollow; other methods are left out where they do not publish their NFE.
    """
    charts = []
    for dataset in dict.fromkeys(row.dataset for row in table.rows):
        series = [each for row in table.rows if row.dataset == dataset for each in _points(row, table=table)]
        if len({x for each in series for x, _ in each.points}) > 1:
            charts.append(_column_chart(table, x="nfe", series=series, dataset=dataset))
    return charts


def _points(row: Row, *, table: Table) -> Iterator[Series]:
    """Yield the measured and the published number of a row, as far as they exist."""
    if row.nfe is None:
        return
    found, published = row.numbers[table.drawn], row.published.get(table.drawn)
    name, colour, x = row_name(row, table=table), table.rows.index(row), float(row.nfe)
    if found.shown is not None:
        reach = None
        if found.std is not None and found.best_block is not None and found.worst_block is not None:
            reach = min(found.best_block, found.worst_block), max(found.best_block, found.worst_block)
        yield Series(name=name, points=((x, found.shown),), colour=colour, kind="point", reach=reach)
    if published is not None:
        yield Series(name=name, points=((x, published),), colour=colour, kind="published")


def nfe_notes(charts: Sequence[Chart]) -> Iterator[str]:
    """Yield the legend's explanations that apply to charts of `nfe_charts`."""
    series = [each for chart in charts for each in chart.series]
    if any(each.reach is not None for each in series):
        yield "Bars: least to greatest value of the blocks of seeds or runs."
    if any(each.kind == "published" for each in series):
        yield "Hollow: published numbers."


def log_charts(evidence: Evidence) -> list[Chart]:
    """Return what the runs logged: one chart for each quantity of each objective, fine-tuning first."""
    logged = sorted((run for run in evidence.runs if run.log), key=lambda run: not run.is_tuned)
    colours, names, found = run_colours(evidence), run_names(evidence), list[Chart]()
    for objective in dict.fromkeys(run.objective for run in logged):
        runs = [run for run in logged if run.objective == objective]
        for kind in ("losses", "observed", "controls"):
            found += _logged(runs, kind=kind, objective=objective, colours=colours, names=names)
    return found


def _logged(
    runs: Sequence[RunEvidence], *, kind: str, objective: str, colours: dict[str, int], names: dict[str, str]
) -> Iterable[Chart]:
    """Yield one chart for each quantity that was logged more than once, with one line for each run."""
    images = max(float(run.log[-1]["images_seen"]) for run in runs)
    for name in dict.fromkeys(name for run in runs for record in run.log for name in record.get(kind, {})):
        words = name.replace("_", " ") + (" loss" if kind == "losses" else "")
        title = words if name == objective else f"{objective.replace('_', ' ')}: {words}"
        lines = []
        for run in runs:
            records = ((record["images_seen"], record.get(kind, {}).get(name)) for record in run.log)
            points = averaged([(float(seen), float(value)) for seen, value in records if value is not None])
            if points:
                lines.append(Series(name=names[run.name], points=tuple(points), colour=colours[run.name]))
        if any(len(line.points) > 1 for line in lines):
            scale: Literal["distance", "quantity"] = "distance" if kind == "losses" else "quantity"
            yield Chart(title=title, x="images", series=tuple(lines), kind=scale, size=(336, 200), images=images)


def averaged(points: Sequence[Point]) -> list[Point]:
    """Return at most `MOST_POINTS` points: means over equal numbers of points, but for the first of what remains."""
    if len(points) <= MOST_POINTS:
        return list(points)
    # Stretches of two lengths would have two levels of noise.
    length = math.ceil(len(points) / MOST_POINTS)
    first = len(points) % length or length
    means = [stretch.mean(axis=0) for stretch in np.split(np.array(points), range(first, len(points), length))]
    return [(float(x), float(y)) for x, y in means]


def draw(charts: Sequence[Chart]) -> Figure:
    """Return a figure with the charts below each other; without charts, one line of text."""
    from matplotlib.figure import Figure

    with style():
        heights = [chart.size[1] + _legend_height(chart) for chart in charts] or [30]
        width = max((chart.size[0] for chart in charts), default=440)
        figure = Figure(figsize=(width / 96, sum(heights) / 96), dpi=96, layout="constrained")
        if not charts:
            figure.text(0.01, 0.5, "No two numbers of different NFE.", color=SOFT, va="center")
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
        return axes.plot(xs, ys, color=colour, marker=marker, linestyle=dash, clip_on=marker is None)[0]
    if series.reach is not None:
        axes.vlines(xs, *series.reach, color=colour, alpha=0.6)
    face = "none" if series.kind == "published" else colour
    size = 7.0 if series.kind == "published" else 5.5  # a published number stays visible around a measured one
    (points,) = axes.plot(xs, ys, color=colour, linestyle="none", marker=_MARKERS[again], markersize=size)
    points.set(markerfacecolor=face, clip_on=False)
    return points


def _scale_x(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    xs = sorted({x for each in chart.series if each.kind != "level" for x, _ in each.points})
    if chart.x == "images":
        axes.set_xlabel("images seen in training")
        axes.set_xlim(0, max(1, xs[-1], chart.images) * 1.02)
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
