"""The charts of a page: a metric over training, a metric against NFE, and the quantities that runs logged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from onestep.report import numbers
from onestep.report.charts import Chart, Series
from onestep.report.evidence import Evidence, RunEvidence, TableEvidence
from onestep.report.table import Row, Table

MOST_POINTS = 120
"""A longer log is drawn as means over equal numbers of records."""
Point = tuple[float, float]


def row_name(row: Row, *, table: Table) -> str:
    """Return a row's label, extended by NFE and EMA where other rows of its dataset have the same label."""
    same = [each for each in table.rows if (each.label, each.dataset) == (row.label, row.dataset)]
    alike = [each for each in same if each.nfe == row.nfe]
    nfe = f", NFE {row.nfe}" if len(same) > len(alike) else ""
    return f"{row.label}{nfe}" + ("" if len(alike) == 1 or row.ema is None else f", EMA {row.ema:,.15g}")


def run_colours(evidence: Evidence) -> dict[str, int]:
    """Return one colour for each run: that of its first row in a table, or a free one."""
    colours: dict[str, int] = {}
    for shown in evidence.tables:
        for index, row in enumerate(shown.table.rows):
            for run in row.runs or ([row.run] if row.run is not None else []):
                colours.setdefault(run, index)
    free = max((len(shown.table.rows) for shown in evidence.tables), default=0)
    others = [run.name for run in evidence.runs if run.name not in colours]
    return colours | {run: free + place for place, run in enumerate(others)}


def metric_chart(shown: TableEvidence) -> Chart | None:
    """Return a column over training: rows with several snapshots as lines, other rows as levels; None for no line."""
    table, series = shown.table, []
    for colour, (row, points) in enumerate(zip(table.rows, shown.curves, strict=True)):
        name = row_name(row, table=table) + ("" if table.dataset is not None else f", {row.dataset}")
        if points:
            kind: Literal["marked", "level"] = "marked" if len(points) > 1 else "level"
            series.append(Series(name=name, points=points, colour=colour, kind=kind))
    if all(each.kind == "level" for each in series):
        return None
    return _column_chart(table, x="images", series=series)


def _column_chart(
    table: Table, *, x: Literal["images", "nfe"], series: Sequence[Series], dataset: str | None = None
) -> Chart:
    """Return the chart of the drawn column. Where higher is better and all values are in [0, 1], they are shares."""
    direction = table.directions[table.drawn]
    of = "" if dataset is None or table.dataset is not None else f" of {dataset}"
    chart = Chart(title=f"{numbers.heading(table.drawn)}{of}, {direction} is better", x=x, series=tuple(series))
    is_share = direction == "higher" and all(0 <= value <= 1 for value in chart.values)
    return replace(chart, kind="share" if is_share else "distance")


def nfe_charts(table: Table) -> list[Chart]:
    """Return the drawn column against NFE: one chart for each dataset with at least two numbers.

    Published numbers are hollow; other methods are left out where they do not publish their NFE.
    """
    charts = []
    for dataset in dict.fromkeys(row.dataset for row in table.rows):
        series = [each for row in table.rows if row.dataset == dataset for each in _points(row, table=table)]
        if len(series) > 1:
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
    colours, found = run_colours(evidence), list[Chart]()
    for objective in dict.fromkeys(run.objective for run in logged):
        runs = [run for run in logged if run.objective == objective]
        for kind in ("losses", "observed", "controls"):
            found += _logged(runs, kind=kind, objective=objective, colours=colours)
    return found


def _logged(runs: Sequence[RunEvidence], *, kind: str, objective: str, colours: dict[str, int]) -> Iterable[Chart]:
    """Yield one chart for each logged quantity, with one line for each run."""
    for name in dict.fromkeys(name for run in runs for record in run.log for name in record.get(kind, {})):
        words = name.replace("_", " ") + (" loss" if kind == "losses" else "")
        title = words if name == objective else f"{objective.replace('_', ' ')}: {words}"
        lines = []
        for run in runs:
            records = ((record["images_seen"], record.get(kind, {}).get(name)) for record in run.log)
            points = averaged([(float(seen), float(value)) for seen, value in records if value is not None])
            if points:
                lines.append(Series(name=run.name, points=tuple(points), colour=colours[run.name]))
        if lines:
            scale: Literal["distance", "quantity"] = "distance" if kind == "losses" else "quantity"
            yield Chart(title=title, x="images", series=tuple(lines), kind=scale, size=(336, 200))


def averaged(points: Sequence[Point]) -> list[Point]:
    """Return at most `MOST_POINTS` points: means over equal numbers of points."""
    if len(points) <= MOST_POINTS:
        return list(points)
    means = [stretch.mean(axis=0) for stretch in np.array_split(np.array(points), MOST_POINTS)]
    return [(float(x), float(y)) for x, y in means]
