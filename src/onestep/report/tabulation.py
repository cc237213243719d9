"""From measurements in results/ to the files of one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onestep.figures import svg
from onestep.files import read_json, write_json, write_text
from onestep.models import Selected, parse_model
from onestep.report import charts, formats, numbers
from onestep.report.curves import nfe_charts
from onestep.report.table import Measurements, Row, Table, as_json, column_directions, fill
from onestep.results import Results


def write_tables(plan: Mapping[str, Any], *, results: Path, training_code: Mapping[str, str], folder: Path) -> None:
    """Write `{table}.json`, `.csv`, `.md`, `.tex` and `.svg` from the measurements that exist.

    Args:
        plan: `name`; `layout`, the table's block of config.yaml; `metrics`, their blocks by name; `drawn`, the column
            of the chart; `rows`, what config.yaml determines of each `Row`. For a selected snapshot, `images_seen` is
            None and `model` names the selection. A row of a family of runs has `models`, the model of each run.
        results: The folder results/.
        training_code: Fingerprint of the current training code by run.
        folder: Destination.

    Raises:
        ValueError: A file is damaged, or numbers of one column are not comparable.
    """
    layout = plan["layout"]
    table = Table(
        name=plan["name"],
        title=layout["title"],
        caption=layout.get("caption") or "",
        dataset=layout.get("dataset"),
        seeds=tuple(layout["seeds"]),
        show=layout.get("show", "mean"),
        columns=layout["columns"],
        directions=column_directions(layout["columns"], metrics={m: b["name"] for m, b in plan["metrics"].items()}),
        drawn=plan["drawn"],
    )
    policy, paths = layout.get("select", "last"), Results(results)
    rows = [_read_row(row, policy=policy, paths=paths, training_code=training_code) for row in plan["rows"]]
    write_table(folder, table=fill(table, [(row, _measured(row, models, table, paths)) for row, models in rows]))


def write_table(folder: Path | str, *, table: Table) -> None:
    """Write a table in its five formats below `folder`. The same table gives the same bytes."""
    stem = Path(folder) / table.name
    write_json(f"{stem}.json", as_json(table))
    write_text(f"{stem}.csv", formats.as_csv(table))
    write_text(f"{stem}.md", formats.as_markdown(table))
    write_text(f"{stem}.tex", formats.as_latex(table))
    write_text(f"{stem}.svg", svg(charts.draw(nfe_charts(table))))


def _read_row(
    planned: Mapping[str, Any], *, policy: str, paths: Results, training_code: Mapping[str, str]
) -> tuple[Row, Sequence[str]]:
    """Return a row without numbers, and the models whose measurements it shows."""
    models = planned.get("models") or ([planned["model"]] if planned["model"] is not None else [])
    parsed = [parse_model(model) for model in models]
    summaries = {each.name: read_json(path) for each in parsed if (path := paths.summary(each.name)).exists()}
    row = Row(
        **{**planned, "models": tuple(planned.get("models", ()))},
        snapshot=planned["model"],
        snapshot_policy="last" if summaries else None,
        frozen_share=next(iter(summaries.values()))["frozen_share"] if summaries else None,
        # A resumed run may have been trained by two versions of the code.
        trained_with_other_code=any(each["codes"] != [training_code.get(run)] for run, each in summaries.items()),
    )
    choices = [read_json(paths.selection(model, ".json")) for model in parsed if isinstance(model, Selected)]
    if not choices:
        return row, models
    selected = {"snapshot": choices[0]["snapshot"], "images_seen": choices[0]["images"]} if len(models) == 1 else {}
    return replace(row, **selected, snapshot_policy=_policy(choices[0], policy=policy)), models


def _policy(choice: Mapping[str, Any], *, policy: str) -> str:
    """Return how a snapshot was selected: "lowest FD of 4, seeds 0-1999"."""
    extreme = {"lower": "lowest", "higher": "highest"}[choice["direction"]]
    column = numbers.heading(policy.removeprefix("best_"))
    return f"{extreme} {column} of {len(choice['candidates'])}, seeds {choice['seeds']}"


def _measured(row: Row, models: Sequence[str], table: Table, paths: Results) -> list[Measurements]:
    found: list[Measurements] = []
    for model in models:
        files = {
            metric: [paths.metric(model, str(row.sampler), seeds, metric) for seeds in table.seeds]
            for metric in (source.partition(".")[0] for source in table.columns.values())
        }
        found.append({metric: [read_json(each) for each in those if each.exists()] for metric, those in files.items()})
    return found or [{}]
