"""The verb `tabulate`: from measurements in results/ to the files of one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onestep.figures import svg
from onestep.files import read_json, write_json, write_text
from onestep.models import Selected, parse_model
from onestep.report import charts, formats, numbers
from onestep.report.table import Measurements, Row, Table, as_json, fill, without_rows
from onestep.results import Results


def tabulate(*, table: Mapping[str, Any], training_code: Mapping[str, Any], results: Path, output: Path) -> int:
    """Write one table as JSON, CSV, Markdown and LaTeX, and its chart as SVG, from the measurements that exist.

    `table` has its `name`, its block of config.yaml (`layout`), the blocks of its `metrics`, the column of the chart
    (`drawn`), and `rows`: what config.yaml determines of each `Row`. For a selected snapshot, `images_seen` is None and
    `model` names the selection. A row of a family of runs has `models`, the model of each run.

    Args:
        table: The table with its rows, as the workflow composes it (JSON).
        training_code: Fingerprint of today's training code by run (JSON).
        results: The results folder.
        output: Folder of the files.
    """
    layout, paths = table["layout"], Results(results)
    empty = without_rows(table["name"], layout, drawn=table["drawn"], metrics=table["metrics"])
    policy = layout.get("select", "last")
    rows = [_read_row(row, policy=policy, paths=paths, training_code=training_code) for row in table["rows"]]
    write_table(output, table=fill(empty, [(row, _measurements(row, empty, paths)) for row in rows]))
    return 0


def write_table(folder: Path | str, *, table: Table) -> None:
    """Write a table in its five formats below `folder`. The same table gives the same bytes."""
    stem = Path(folder) / table.name
    write_json(f"{stem}.json", as_json(table))
    write_text(f"{stem}.csv", formats.as_csv(table))
    write_text(f"{stem}.md", formats.as_markdown(table))
    write_text(f"{stem}.tex", formats.as_latex(table))
    write_text(f"{stem}.svg", svg(charts.draw(charts.nfe_charts(table))))


def _read_row(planned: Mapping[str, Any], *, policy: str, paths: Results, training_code: Mapping[str, str]) -> Row:
    """Return a row without numbers."""
    row = Row(**{**planned, "models": tuple(planned.get("models", ()))}, snapshot=planned["model"])
    models = [parse_model(model) for model in row.measured]
    summaries = {each.name: read_json(path) for each in models if (path := paths.summary(each.name)).exists()}
    if summaries:
        row = replace(
            row,
            snapshot_policy="last",
            frozen_share=next(iter(summaries.values()))["frozen_share"],
            # A resumed run may have been trained by two versions of the code.
            trained_with_other_code=any(each["codes"] != [training_code.get(run)] for run, each in summaries.items()),
        )
    choices = [read_json(paths.selection(model, ".json")) for model in models if isinstance(model, Selected)]
    if not choices:
        return row
    choice = choices[0]
    if len(models) == 1:
        row = replace(row, snapshot=choice["snapshot"], images_seen=choice["images"])
    extreme, column = {"lower": "lowest", "higher": "highest"}[choice["direction"]], policy.removeprefix("best_")
    policy = f"{extreme} {numbers.heading(column)} of {len(choice['candidates'])}, seeds {choice['seeds']}"
    return replace(row, snapshot_policy=policy)


def _measurements(row: Row, table: Table, paths: Results) -> list[Measurements]:
    metrics = dict.fromkeys(source.partition(".")[0] for source in table.columns.values())
    found: list[Measurements] = []
    for model in row.measured:
        files = {
            metric: [paths.metric(model, str(row.sampler), each, metric) for each in table.seeds] for metric in metrics
        }
        found.append({metric: [read_json(path) for path in those if path.exists()] for metric, those in files.items()})
    return found or [{}]
