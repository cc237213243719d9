"""What the page shows, as texts and pictures: the template only places them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from onestep.metrics import Direction
from onestep.report import cells, curves, facts, grids, numbers, tradeoffs
from onestep.report.cells import Cell
from onestep.report.claim import Claim, evaluations, origins, state_claim
from onestep.report.evidence import RunEvidence, Samples, StageTime, TableEvidence
from onestep.report.facts import MetricFact
from onestep.report.figures import draw
from onestep.report.grids import Picture
from onestep.report.scatter import draw_points
from onestep.report.strokes import colour_class
from onestep.report.table import Row
from onestep.report.yaml_markup import highlight_yaml

PANEL_IMAGES, PANEL_WIDTH = 16, 480
SHEET_WIDTH = 1080
VERDICTS = {
    "holds": "The numbers below support this",
    "close": "The numbers below support this up to a factor of 2",
    "fails": "The numbers below do not support the claim",
    "open": "No verdict from these numbers",
}


@dataclass(frozen=True, kw_only=True)
class RowView:
    """A row as the page shows it: texts, its colour class, its cells by column, and its images.

    Attributes:
        facts: What stands beside its numbers, by heading.
        published: The published number and our difference to it, by column; of the columns that have any.
    """

    row: Row
    colour: str
    facts: Mapping[str, str]
    evaluations: str
    cells: Mapping[str, Cell | None]
    published: Mapping[str, tuple[str, str]]
    panel: Picture | None
    sheet: Picture | None


@dataclass(frozen=True, kw_only=True)
class TableView:
    """A table with its claim, its rows, its images and its curve.

    Attributes:
        anchor: The section's address within the page.
        headings: A column's heading by column, with the arrow of the better direction.
        judged, direction: Heading of the column the claim is judged by, and which direction is better.
        claimed: The rows the claim speaks of; all that draw images where it speaks of none.
        drawn: The rows that draw images: all but those of other methods.
        panel_seeds, sheet_seeds: The seeds of the small and the large pictures, as text.
        sheet_columns: Images in a row of the large pictures.
        tradeoffs: The metric over evaluations as `<svg>`, one a dataset; none where there are no two numbers.
        tradeoff_notes: What bars and hollow points are, where there are any.
        curve: The metric over training as `<svg>`; None where no row has several measured snapshots.
        curve_note: How the curve's values and the table's are related.
    """

    anchor: str
    title: str
    claim: Claim
    verdict: str
    headings: Mapping[str, str]
    judged: str
    direction: Direction
    rows: tuple[RowView, ...]
    claimed: tuple[RowView, ...]
    drawn: tuple[RowView, ...]
    notes: tuple[str, ...]
    panel_seeds: str
    sheet_seeds: str
    sheet_columns: int
    tradeoffs: tuple[Markup, ...]
    tradeoff_notes: tuple[str, ...]
    curve: Markup | None
    curve_note: str
    metric_facts: tuple[MetricFact, ...]
    independence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run's line in the table of runs, its bar of trained and frozen weights, and its run.yaml.

    Attributes:
        tuned: Whether it started from a trained network, so that the bar says something.
        trained, frozen: Numbers of weights.
        trained_share, frozen_share: The same as per cent.
        trained_percent: Length of the bar.
        spec, code: The fingerprints the run was trained under.
    """

    name: str
    colour: str
    facts: Mapping[str, str]
    tuned: bool
    trained: str
    frozen: str
    trained_share: str
    frozen_share: str
    trained_percent: str
    spec: str
    code: str
    resolved: Markup


@dataclass(frozen=True, kw_only=True)
class StageView:
    """The time a stage took: texts, and the length of its bar relative to the longest stage's."""

    rule: str
    jobs: str
    total: str
    percent: str


def table_view(shown: TableEvidence, *, config: Mapping[str, Any]) -> TableView:
    """Return a table as the page shows it."""
    table = shown.table
    claim = state_claim(table, column=shown.curve_column, origin=origins(config))
    seeds = grids.shared_seeds(shown.samples, count=PANEL_IMAGES)
    columns, sheet_seeds = _sheet_layout(shown)
    pictures = [_pictures(each, panel=seeds, sheet=sheet_seeds, columns=columns) for each in shown.samples]
    rows = tuple(
        _row_view(row, shown=shown, index=index, pictures=pictures[index]) for index, row in enumerate(table.rows)
    )
    drawn = tuple(view for view in rows if view.row.run is not None)
    chart, charts = curves.metric_chart(shown), tradeoffs.tradeoff_charts(table, column=claim.column)
    return TableView(
        anchor=f"table-{table.name}",
        title=table.title,
        claim=claim,
        verdict=VERDICTS[claim.verdict],
        headings={column: cells.title_of(column, table=table) for column in table.columns},
        judged=numbers.heading(claim.column),
        direction=table.directions[claim.column],
        rows=rows,
        claimed=tuple(view for row in claim.rows for view in rows if view.row is row) or drawn,
        drawn=drawn,
        notes=tuple(cells.notes(table)),
        panel_seeds=span(seeds),
        sheet_seeds=span(sheet_seeds),
        sheet_columns=columns,
        tradeoffs=tuple(Markup(draw_points(each)) for each in charts),
        tradeoff_notes=tuple(tradeoffs.notes(charts)),
        curve=None if chart is None else Markup(draw(chart)),
        curve_note=curve_note(shown),
        metric_facts=tuple(facts.metric_facts(table, config=config)),
        independence=tuple(facts.independence(table, config=config)),
    )


def _sheet_layout(shown: TableEvidence) -> tuple[int, list[int]]:
    """Return how many images stand in a row of the large pictures, and their seeds."""
    resolutions = [each.pixels.shape[2] for each in shown.samples if each is not None]
    columns, rows = grids.sheet_shape(max(resolutions, default=16), width=SHEET_WIDTH)
    return columns, grids.shared_seeds(shown.samples, count=columns * rows)


def _pictures(
    samples: Samples | None, *, panel: Sequence[int], sheet: Sequence[int], columns: int
) -> tuple[Picture, Picture] | tuple[None, None]:
    """Return a row's small and large picture."""
    if samples is None or not sheet:
        return None, None
    small = grids.contact_sheet(grids.pick(samples, seeds=panel), columns=4, width=PANEL_WIDTH)
    large = grids.contact_sheet(grids.pick(samples, seeds=sheet), columns=columns, width=SHEET_WIDTH)
    return small, large


def _row_view(
    row: Row, *, shown: TableEvidence, index: int, pictures: tuple[Picture, Picture] | tuple[None, None]
) -> RowView:
    blocks = len(shown.table.seeds)
    return RowView(
        row=row,
        colour=colour_class(index),
        facts=cells.facts(row, table=shown.table),
        evaluations=cells.NOT_PUBLISHED if row.nfe is None else evaluations(row.nfe),
        cells={column: cells.cell(row, column=column, blocks=blocks) for column in shown.table.columns},
        published={
            column: cells.published_cells(row, column=column, table=shown.table)
            for column in cells.published_columns(shown.table)
        },
        panel=pictures[0],
        sheet=pictures[1],
    )


def curve_note(shown: TableEvidence) -> str:
    """Return which block of seeds a curve was measured on, and what that means for the table beside it."""
    measured = f"Measured on every snapshot with the one block of seeds {shown.curve_seeds}"
    if shown.table.show == "first" and shown.curve_seeds == shown.table.seeds[0]:
        return f"{measured}, as in the table."
    others = {"mean": "the means", "first": "the first block's", "best": "the best blocks'"}[shown.table.show]
    return f"{measured}, so values differ a little from {others} in the table."


def span(seeds: Sequence[int]) -> str:
    """Return seeds as text: '0 to 15' where they follow each other, else the first, the last and their number."""
    if not seeds:
        return "none"
    if seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]} to {seeds[-1]}"
    return f"{len(seeds)} seeds from {seeds[0]} to {seeds[-1]}"


def run_view(run: RunEvidence, *, colour: int, config: Mapping[str, Any]) -> RunView:
    """Return a run as the page shows it."""
    options, summary = config["runs"][run.name], run.summary
    trained, total = summary["trainable"], summary["parameters"]
    return RunView(
        name=run.name,
        colour=colour_class(colour),
        facts={"objective": options["objective"]["name"], **_run_facts(run)},
        tuned=options.get("teacher") is not None,
        trained=numbers.count(trained),
        frozen=numbers.count(total - trained),
        trained_share=numbers.share(trained / total),
        frozen_share=numbers.share(1 - trained / total),
        trained_percent=f"{100 * trained / total:.2f}",
        spec=str(summary["spec"]),
        code=str(summary["code"])[:16],
        resolved=highlight_yaml(run.resolved),
    )


def _run_facts(run: RunEvidence) -> dict[str, str]:
    """Return what a run cost and which state it stands for, by column."""
    summary = run.summary
    rate = curves.median(record.get("images_per_second") for record in run.log)
    memory = max((record["memory_mib"] for record in run.log if record.get("memory_mib")), default=None)
    return {
        "images": numbers.count(summary["images_seen"]),
        "weights": numbers.count(summary["parameters"]),
        "time": numbers.duration(summary["seconds"]),
        "images / s": "not logged" if rate is None else f"{rate:.0f}",
        "memory": "not logged" if memory is None else f"{numbers.count(memory)} MiB",
        "processes": str(summary["world_size"]),
        "restarts": str(summary["restarts"]),
        "non-finite": numbers.count(sum(record.get("non_finite", 0) for record in run.log)),
    }


def stage_views(stages: Sequence[StageTime]) -> list[StageView]:
    """Return the stages with bars relative to the longest one."""
    longest = max((stage.total for stage in stages), default=0.0) or 1.0
    return [
        StageView(
            rule=stage.rule,
            jobs="1 job" if stage.jobs == 1 else f"{stage.jobs} jobs, longest {numbers.duration(stage.longest)}",
            total=numbers.duration(stage.total),
            percent=f"{100 * stage.total / longest:.2f}",
        )
        for stage in stages
    ]
