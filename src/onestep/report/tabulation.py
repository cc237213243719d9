"""From measurements in results/ to the files of one table."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onestep.figures import svg
from onestep.files import read_json, sha256_of_file, write_json, write_text
from onestep.models import Selected, Teacher, parse_model
from onestep.records import found_at, read_measurement, read_summary
from onestep.report import charts, formats, numbers
from onestep.report.table import Measurement, Measurements, Number, Row, Table, as_json, fill, without_rows
from onestep.results import Results

_CHOICE = {
    **dict.fromkeys(("snapshot", "direction", "seeds"), str),
    "model?": str,
    "images": int,
    "candidates": {str: float},
}


def tabulate(*, table: Mapping[str, Any], training_code: Mapping[str, Any], results: Path, output: Path) -> int:
    """Write one table in all formats, and its chart, to the folder `output`, from the measurements that exist.

    `table` has its `name`, its block of config.yaml (`layout`), the blocks of its `metrics`, the column of the chart
    (`drawn`), and `rows`: what config.yaml determines of each `Row`. For a selected snapshot, `images_seen` is None and
    `model` names the selection. A row of a family of runs has `models`, the model of each run. `training_code` has the
    fingerprint of today's training code by run.
    """
    layout, paths = table["layout"], Results(results)
    empty = without_rows(table["name"], layout, drawn=table["drawn"], metrics=table["metrics"])
    policy = layout.get("select", "last")
    rows = [_read_row(row, policy=policy, paths=paths, training_code=training_code) for row in table["rows"]]
    found = [_measured(row, empty, paths) for row in rows]
    write_table(output, table=fill(empty, found))
    return 0


def write_table(folder: Path | str, *, table: Table) -> None:
    """Write a table in its five formats below `folder`, and their digests. The same table gives the same bytes."""
    stem = Path(folder) / table.name
    write_json(f"{stem}.json", as_json(table))
    write_text(f"{stem}.csv", formats.as_csv(table))
    write_text(f"{stem}.md", formats.as_markdown(table))
    write_text(f"{stem}.tex", formats.as_latex(table))
    write_text(f"{stem}.svg", svg(charts.draw(charts.nfe_charts(table))))
    written = [stem.with_name(f"{stem.name}.{ending}") for ending in ("csv", "json", "md", "svg", "tex")]
    write_text(f"{stem}.sha256", "".join(f"{sha256_of_file(path)}  {path.name}\n" for path in written))


def _read_row(planned: Mapping[str, Any], *, policy: str, paths: Results, training_code: Mapping[str, str]) -> Row:
    """Return a row without numbers."""
    lists = {key: tuple(planned.get(key, ())) for key in ("models", "trained_on")}
    row = Row(**{**planned, **lists}, snapshot=planned["model"])
    models = [parse_model(model) for model in row.measured]
    for run in (each.name for each in models if not isinstance(each, Teacher)):
        read = functools.partial(read_summary, run=run, keys=("frozen_share", "codes"))
        summary, fault = found_at(paths.summary(run), read)
        if summary is None:
            row = replace(row, lost=fault.partition(":")[0], faults=(*row.faults, fault))
            continue
        row = replace(
            row,
            snapshot_policy="last",
            frozen_share=summary["frozen_share"] if row.frozen_share is None else row.frozen_share,
            # A resumed run may have been trained by two versions of the code.
            trained_with_other_code=row.trained_with_other_code or summary["codes"] != [training_code.get(run)],
        )
    choices = [_read_choice(model, paths=paths) for model in models if isinstance(model, Selected)]
    if not choices:
        return row
    choice = choices[0]
    if len(models) == 1:
        row = replace(row, snapshot=choice["snapshot"], images_seen=choice["images"])
    extreme, column = {"lower": "lowest", "higher": "highest"}[choice["direction"]], policy.removeprefix("best_")
    policy = f"{extreme} {numbers.heading(column)} of {len(choice['candidates'])}, seeds {choice['seeds']}"
    return replace(row, snapshot_policy=policy)


def _read_choice(model: Selected, *, paths: Results) -> dict[str, Any]:
    path = paths.selection(model, ".json")
    choice: dict[str, Any] = read_json(path, _CHOICE)
    if choice.get("model", str(model)) != str(model):
        raise ValueError(f"{path}: got the choice {choice['model']}, expected {model}. Fix: delete it to select again")
    return choice


def _measured(row: Row, table: Table, paths: Results) -> tuple[Row, list[Measurements]]:
    """Return a row with the measurements of its runs, and with its files that are missing or damaged.

    While none of its numbers is measured, none is missing.
    """
    metrics = dict.fromkeys(source.partition(".")[0] for source in table.columns.values())
    found: list[Measurements] = []
    faults: list[str] = []
    lost: dict[str, str] = {}
    for model in row.measured:
        read: dict[str, list[Measurement]] = {metric: [] for metric in metrics}
        for metric, seeds in itertools.product(metrics, table.seeds):
            content, fault = found_at(paths.metric(model, str(row.sampler), seeds, metric), read_measurement)
            if content is not None:
                read[metric].append(content)
            else:
                faults.append(fault)
                lost[metric] = min(lost.get(metric, "missing"), fault.partition(":")[0])  # damaged, if any is
        found.append(read)
    if not any(blocks for read in found for blocks in read.values()) and "damaged" not in lost.values():
        faults, lost = [], {}
        if row.lost == "missing":
            row = replace(row, lost=None, faults=())
    numbers = {
        column: Number(lost=lost[metric])
        for column, source in table.columns.items()
        if (metric := source.partition(".")[0]) in lost
    }
    return replace(row, faults=(*row.faults, *faults), numbers=numbers), found or [{}]
