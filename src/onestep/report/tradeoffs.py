"""What a number costs: charts of a column against the network evaluations for an image, and the file of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import resources

from onestep.report import numbers
from onestep.report.scatter import Point, Scatter, draw_points
from onestep.report.table import Row, Table

X_LABEL = "network evaluations an image"
NOTHING = (
    '<svg class="chart" viewBox="0 0 440 40"><text class="axis" x="0" y="24">Nothing measured to draw yet.</text></svg>'
)
_GAP = 14


def tradeoff_charts(table: Table, *, column: str) -> list[Scatter]:
    """Draw a column over evaluations: a chart for each dataset of which there are two numbers, a point for each row.

    Published numbers are hollow, those of other methods where their evaluations are known.
    """
    datasets = dict.fromkeys(row.dataset for row in table.rows)
    charts = [_chart(table, column=column, dataset=dataset) for dataset in datasets]
    return [chart for chart in charts if len(chart.points) > 1]


def _chart(table: Table, *, column: str, dataset: str) -> Scatter:
    of = f"{numbers.heading(column)}" + ("" if table.dataset is not None else f" of {dataset}")
    points = [point for row in table.rows if row.dataset == dataset for point in _points(row, column, table=table)]
    return Scatter(title=f"{of}, {table.directions[column]} is better", x_label=X_LABEL, points=tuple(points))


def _points(row: Row, column: str, *, table: Table) -> Iterator[Point]:
    """Yield our number of a row and the published one, whatever there is of them."""
    if row.nfe is None:
        return
    ours, theirs = row.metrics[column], row.published.get(column)
    name, colour, x = _name(row, table=table), table.rows.index(row), float(row.nfe)
    if ours is not None:
        yield Point(name=name, x=x, y=ours, colour=colour, reach=_reach(row, column))
    if theirs is not None:
        yield Point(name=name, x=x, y=theirs, colour=colour, hollow=True, named=ours is None)


def _reach(row: Row, column: str) -> tuple[float, float] | None:
    """Return the least and the greatest number of a row's blocks of seeds."""
    ends = row.best_block[column], row.worst_block[column]
    if row.blocks[column] < 2 or None in ends:
        return None
    return min(ends), max(ends)


def _name(row: Row, *, table: Table) -> str:
    """Return a row's label, with the average that tells it from rows of the same label and evaluations."""
    alike = [each for each in table.rows if (each.label, each.dataset, each.nfe) == (row.label, row.dataset, row.nfe)]
    return row.label if len(alike) == 1 or row.ema is None else f"{row.label}, average over {row.ema:,.15g}"


def notes(charts: Sequence[Scatter]) -> Iterator[str]:
    """Yield the sentences below charts: what points, bars and rings are."""
    points = [point for chart in charts for point in chart.points]
    yield "Each point is a row of the table."
    if any(point.reach is not None for point in points):
        yield "Bars reach from the least to the greatest number of its blocks of seeds."
    if any(point.hollow for point in points):
        yield "Hollow: published numbers."


def as_svg(table: Table, *, column: str) -> str:
    """Return the charts of a column below each other as one SVG file, with its own style and nothing from outside."""
    drawn = [draw_points(chart) for chart in tradeoff_charts(table, column=column)] or [NOTHING]
    sizes = [re.search(r'viewBox="0 0 (\d+) (\d+)"', svg) for svg in drawn]
    width = max(int(size[1]) for size in sizes)
    heights = [int(size[2]) for size in sizes]
    tops = [sum(heights[:index]) + _GAP * index for index in range(len(heights))]
    height = tops[-1] + heights[-1]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -8 {width + 16} {height + 16}" '
            f'width="{width + 16}" height="{height + 16}">',
            f"<style>\n{_style()}</style>",
            f'<rect class="sheet" x="-8" y="-8" width="{width + 16}" height="{height + 16}"/>',
            *(
                svg.replace("<svg ", f'<svg y="{top}" width="{width}" height="{tall}" ', 1)
                for svg, top, tall in zip(drawn, tops, heights, strict=True)
            ),
            "</svg>",
            "",
        ]
    )


def _style() -> str:
    """Return the page's style of charts without variables, which programs other than browsers do not know."""
    folder = resources.files("onestep.report")
    colours, chart = (folder.joinpath(f"{name}.css").read_text(encoding="utf-8") for name in ("colours", "chart"))
    values = dict(re.findall(r"(--[\w-]+): ([^;]+);", colours))
    plain = chart.replace("var(--c)", "currentColor").replace("{ --c:", "{ color:")
    return re.sub(r"var\((--[\w-]+)\)", lambda found: values[found[1]], plain)
