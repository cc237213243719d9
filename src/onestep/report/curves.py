"""Which curves the page shows: a metric over training, and everything that the runs logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from onestep.report import numbers
from onestep.report.evidence import Evidence, RunEvidence, TableEvidence
from onestep.report.figures import Chart, Level, Line
from onestep.report.table import Row, Table

MOST_POINTS = 120
"""A logged curve with more records is drawn as means over equal stretches of training."""
X_LABEL = "images seen in training"
Point = tuple[float, float]


def row_name(row: Row, *, table: Table) -> str:
    """Return a row's label, with what tells it from rows of the same label: dataset, evaluations, average."""
    name = row.label if table.dataset is not None else f"{row.label}, {row.dataset}"
    same = [each for each in table.rows if (each.label, each.dataset) == (row.label, row.dataset)]
    if len(same) == 1:
        return name
    name = f"{name}, {row.nfe} evaluation" + ("" if row.nfe == 1 else "s")
    alike = [each for each in same if each.nfe == row.nfe]
    return name if len(alike) == 1 or row.ema is None else f"{name}, average over {row.ema:,.15g}"


def run_colours(evidence: Evidence) -> dict[str, int]:
    """Give each run one colour for the whole page: that of its first row, or one that no row has."""
    rows = [(index, row) for shown in evidence.tables for index, row in enumerate(shown.table.rows)]
    colours: dict[str, int] = {}
    for index, row in rows:
        if row.run is not None:
            colours.setdefault(row.run, index)
    free = max((index for index, _ in rows), default=-1) + 1
    for run in evidence.runs:
        if run.name not in colours:
            colours[run.name] = free
            free += 1
    return colours


def metric_chart(shown: TableEvidence) -> Chart | None:
    """Draw a column over training: rows with several snapshots as lines, the others as levels to compare with."""
    table, column = shown.table, shown.curve_column
    lines, levels = [], []
    for curve in shown.curves:
        colour, name = table.rows.index(curve.row), row_name(curve.row, table=table)
        if len(curve.points) > 1:
            lines.append(Line(name=name, points=curve.points, colour=colour, marked=True))
        else:
            levels.append(Level(name=name, value=curve.points[0][1], colour=colour))
    if not lines:
        return None
    title = f"{numbers.heading(column)}, {table.directions[column]} is better"
    return Chart(title=title, x_label=X_LABEL, lines=tuple(lines), levels=tuple(levels), width=440, height=270)


def log_charts(evidence: Evidence, *, colours: Mapping[str, int]) -> list[Chart]:
    """Draw what the runs logged: a chart for each quantity of each objective, fine-tuning first."""
    logged = [run for run in evidence.runs if run.log]
    options = evidence.config["runs"]
    logged.sort(key=lambda run: options[run.name].get("teacher") is None)
    by_objective: dict[str, list[RunEvidence]] = {}
    for run in logged:
        by_objective.setdefault(options[run.name]["objective"]["name"], []).append(run)
    return [
        chart
        for objective, runs in by_objective.items()
        for kind in ("losses", "observed", "controls")
        for chart in _charts(runs, kind=kind, objective=objective, colours=colours)
    ]


def _charts(runs: Sequence[RunEvidence], *, kind: str, objective: str, colours: Mapping[str, int]) -> Iterable[Chart]:
    """Yield one chart for each logged quantity, with one line a run."""
    names = dict.fromkeys(name for run in runs for record in run.log for name in record.get(kind, {}))
    for name in names:
        lines = [_logged(run, kind=kind, name=name, colour=colours[run.name]) for run in runs]
        drawn = tuple(line for line in lines if line.points)
        if drawn:
            yield Chart(title=_quantity(objective, kind=kind, name=name), x_label=X_LABEL, lines=drawn)


def _quantity(objective: str, *, kind: str, name: str) -> str:
    """Return what a logged number is: 'd2o: generator loss', 'edm loss', 'd2o: logits real'."""
    words = name.replace("_", " ") + (" loss" if kind == "losses" else "")
    return words if name == objective else f"{objective.replace('_', ' ')}: {words}"


def _logged(run: RunEvidence, *, kind: str, name: str, colour: int) -> Line:
    records = [(record["images_seen"], record.get(kind, {}).get(name)) for record in run.log]
    points = [(float(seen), float(value)) for seen, value in records if value is not None]
    return Line(name=run.name, points=tuple(averaged(points)), colour=colour)


def averaged(points: Sequence[Point]) -> list[Point]:
    """Return at most `MOST_POINTS` points: means over equal stretches of x."""
    if len(points) <= MOST_POINTS:
        return list(points)
    low, high = points[0][0], points[-1][0]
    stretches = groupby(
        points, key=lambda point: min(int((point[0] - low) / (high - low) * MOST_POINTS), MOST_POINTS - 1)
    )
    return [_mean_point(list(stretch)) for _, stretch in stretches]


def _mean_point(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def median(values: Iterable[Any]) -> float | None:
    """Return the middle of the numbers among `values`; None where there is none."""
    found = sorted(value for value in values if value is not None)
    return found[len(found) // 2] if found else None
