"""The results page: one HTML file that opens from disk, makes no request and needs no script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import onestep
from onestep import files
from onestep.report import cells, curves, facts, grids, numbers
from onestep.report.cells import Cell
from onestep.report.claim import Claim, evaluations, origins, state_claim
from onestep.report.evidence import Evidence, RunEvidence, StageTime, TableEvidence
from onestep.report.facts import MetricFact
from onestep.report.figures import colour_class, draw
from onestep.report.grids import Picture
from onestep.report.table import Row

PANEL_IMAGES, PANEL_WIDTH = 16, 480
SHEET_ROWS, SHEET_WIDTH = 8, 1080
VERDICTS = {
    "holds": "The numbers below support this",
    "close": "The numbers below support this up to a factor of 2",
    "fails": "The numbers below do not support the claim",
    "open": "No verdict from these numbers",
}


@dataclass(frozen=True, kw_only=True)
class RowView:
    """A row as the page shows it: texts, its colour class, its cells by column, and its images."""

    row: Row
    colour: str
    images_seen: str
    frozen: str
    evaluations: str
    cells: Mapping[str, Cell | None]
    panel: Picture | None
    sheet: Picture | None


@dataclass(frozen=True, kw_only=True)
class TableView:
    """A table with its claim, its rows, its images and its curve.

    Attributes:
        anchor: The section's address within the page.
        headings: A column's heading by column, with the arrow of the better direction.
        judged: Heading of the column the claim is judged by.
        claimed: The rows the claim speaks of; all rows where it speaks of none.
        panel_seeds, sheet_seeds: The seeds of the small and the large pictures, as text.
        sheet_columns: Images in a row of the large pictures.
        curve: The metric over training as `<svg>`; None where no row has several measured snapshots.
    """

    anchor: str
    title: str
    claim: Claim
    verdict: str
    headings: Mapping[str, str]
    judged: str
    rows: tuple[RowView, ...]
    claimed: tuple[RowView, ...]
    notes: tuple[str, ...]
    panel_seeds: str
    sheet_seeds: str
    sheet_columns: int
    curve: Markup | None
    curve_seeds: str
    metric_facts: tuple[MetricFact, ...]
    independence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run's line in the table of runs, and its share of frozen weights."""

    name: str
    colour: str
    facts: Mapping[str, str]
    frozen_percent: str | None
    frozen: str
    moved: str
    held: str
    resolved: Markup


@dataclass(frozen=True, kw_only=True)
class ChartsView:
    """The charts of the runs that share an objective."""

    name: str
    runs: tuple[str, ...]
    charts: tuple[Markup, ...]


@dataclass(frozen=True, kw_only=True)
class StageView:
    """The time a stage took: texts, and its share of the longest stage for the bar."""

    rule: str
    jobs: str
    total: str
    longest: str
    percent: str


def write_page(path: Path | str, *, evidence: Evidence) -> None:
    """Write the results page to `path`, whole or not at all."""
    files.write_text(path, render(evidence))


def render(evidence: Evidence) -> str:
    """Return the results page. The same evidence gives the same text."""
    environment = Environment(
        loader=PackageLoader("onestep", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = curves.run_colours(evidence)
    return environment.get_template("page.html.jinja").render(
        css=Markup(resources.files("onestep.report").joinpath("page.css").read_text(encoding="utf-8")),
        tables=[table_view(shown, config=evidence.config) for shown in evidence.tables],
        runs=[run_view(run, colour=colours[run.name], config=evidence.config) for run in evidence.runs],
        groups=[
            ChartsView(name=group.name, runs=group.runs, charts=tuple(Markup(draw(chart)) for chart in group.charts))
            for group in curves.log_groups(evidence, colours=colours)
        ],
        stages=stage_views(evidence.stages),
        total_time=numbers.duration(sum(stage.total for stage in evidence.stages)),
        environment=evidence.environment,
        inputs=evidence.config.get("inputs") or {},
        config=highlight_yaml(evidence.config_text),
        reproduce=evidence.reproduce,
        version=onestep.__version__,
    )


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
    chart = curves.metric_chart(shown)
    return TableView(
        anchor=f"table-{table.name}",
        title=table.title,
        claim=claim,
        verdict=VERDICTS[claim.verdict],
        headings={column: cells.title_of(column, table=table) for column in table.columns},
        judged=numbers.heading(claim.column),
        rows=rows,
        claimed=tuple(view for row in claim.rows for view in rows if view.row is row) or rows,
        notes=tuple(cells.notes(table)),
        panel_seeds=span(seeds),
        sheet_seeds=span(sheet_seeds),
        sheet_columns=columns,
        curve=None if chart is None else Markup(draw(chart)),
        curve_seeds=shown.curve_seeds,
        metric_facts=tuple(facts.metric_facts(table, config=config)),
        independence=tuple(facts.independence(table, config=config)),
    )


def _sheet_layout(shown: TableEvidence) -> tuple[int, list[int]]:
    """Return how many images stand in a row of the large pictures, and their seeds."""
    resolutions = [each.pixels.shape[2] for each in shown.samples if each is not None]
    columns = grids.columns_for(max(resolutions, default=16), width=SHEET_WIDTH)
    return columns, grids.shared_seeds(shown.samples, count=columns * min(SHEET_ROWS, columns))


def _pictures(
    samples: grids.Samples | None, *, panel: Sequence[int], sheet: Sequence[int], columns: int
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
        images_seen=cells.images_seen(row),
        frozen=cells.frozen_share(row),
        evaluations=evaluations(row.nfe),
        cells={column: cells.cell(row, column=column, blocks=blocks) for column in shown.table.columns},
        panel=pictures[0],
        sheet=pictures[1],
    )


def span(seeds: Sequence[int]) -> str:
    """Return seeds as text: '0-15' where they follow each other, else the first, the last and their number."""
    if not seeds:
        return "none"
    if seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]}-{seeds[-1]}"
    return f"{len(seeds)} seeds from {seeds[0]} to {seeds[-1]}"


def run_view(run: RunEvidence, *, colour: int, config: Mapping[str, Any]) -> RunView:
    """Return a run as the page shows it; facts that its summary lacks are left out of the columns."""
    summary = run.summary
    trainable, total = summary.get("trainable"), summary.get("parameters")
    known = trainable is not None and total
    frozen = 1 - trainable / total if known else None
    return RunView(
        name=run.name,
        colour=colour_class(colour),
        facts={"objective": config["runs"][run.name]["objective"]["name"], **_run_facts(run)},
        frozen_percent=None if frozen is None else f"{100 * frozen:.2f}",
        frozen="" if frozen is None else numbers.share(frozen),
        moved=numbers.count(trainable) if known else "",
        held=numbers.count(total - trainable) if known else "",
        resolved=highlight_yaml(run.resolved),
    )


def _run_facts(run: RunEvidence) -> dict[str, str]:
    """Return what a run cost and which state it stands for, by column."""
    summary = run.summary
    rate = curves.median(record.get("images_per_second") for record in run.log)
    memory = max((record["memory_mib"] for record in run.log if record.get("memory_mib")), default=None)
    return {
        "images": numbers.count(summary["images_seen"]),
        "parameters": numbers.count(summary["parameters"]),
        "time": numbers.duration(summary["seconds"]),
        "images / s": "not logged" if rate is None else f"{rate:.0f}",
        "peak memory": "not logged" if memory is None else f"{numbers.count(memory)} MiB",
        "processes": str(summary.get("world_size", "not recorded")),
        "restarts": str(summary.get("restarts", "not recorded")),
        "non-finite gradients": numbers.count(sum(record.get("non_finite", 0) for record in run.log)),
        "spec": str(summary.get("spec", "not recorded"))[:10],
        "code": str(summary.get("code", "not recorded"))[:10],
    }


def stage_views(stages: Sequence[StageTime]) -> list[StageView]:
    """Return the stages with bars relative to the longest one."""
    longest = max((stage.total for stage in stages), default=0.0) or 1.0
    return [
        StageView(
            rule=stage.rule,
            jobs=f"{stage.jobs} job" + ("" if stage.jobs == 1 else "s"),
            total=numbers.duration(stage.total),
            longest=numbers.duration(stage.longest),
            percent=f"{100 * stage.total / longest:.2f}",
        )
        for stage in stages
    ]


def highlight_yaml(text: str) -> Markup:
    """Return YAML as HTML, verbatim, with comments and keys marked for the style sheet."""
    return Markup("\n").join(_highlight_line(line) for line in text.splitlines())


def _highlight_line(line: str) -> Markup:
    code, comment = _split_comment(line)
    key = re.match(r"(\s*(?:- )?)([\w.-]+)(:(?:\s.*|))$", code)
    marked = escape(code)
    if key:
        marked = escape(key[1]) + Markup("<b>{}</b>").format(key[2]) + escape(key[3])
    return marked + Markup("<i>{}</i>").format(comment) if comment else marked


def _split_comment(line: str) -> tuple[str, str]:
    """Split a line of YAML before its comment: a `#` at the start or behind a space, outside quotes."""
    quote = ""
    for place, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place], line[place:]
    return line, ""
