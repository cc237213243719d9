"""From a finished results folder to the files of one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestep.files import read_json
from onestep.report.formats import write_table
from onestep.report.table import Entry, read_measurements, tabulate


def write_tables(plan: Mapping[str, Any], *, results: Path, training_code: Mapping[str, str], folder: Path) -> None:
    """Write `{table}.json .csv .md .tex` from the numbers that were measured.

    Args:
        plan: `name`, `layout` (the table's block of config.yaml), `metrics` by name, and `rows`: `run`, `sampler`,
            `label`, `nfe`, `images_seen`, `snapshot` (the model) and `published`.
        results: The results folder.
        training_code: Fingerprint of the training code that is here now, by run.
        folder: Where the files go.

    Raises:
        ValueError: A file is damaged, or numbers of one column cannot be compared.
    """
    config = {"tables": {plan["name"]: plan["layout"]}, "metrics": plan["metrics"]}
    entries = [_entry(row, plan=plan, results=results, training_code=training_code) for row in plan["rows"]]
    write_table(folder, table=tabulate(config, name=plan["name"], entries=entries))


def _entry(
    row: Mapping[str, Any], *, plan: Mapping[str, Any], results: Path, training_code: Mapping[str, str]
) -> Entry:
    summary = results / "runs" / row["run"] / "summary.json"
    facts = read_json(summary) if summary.exists() else None
    return Entry(
        **row,
        frozen_share=None if facts is None else facts["frozen_share"],
        # Every life of the run counts: a resumed run may have been trained by two versions.
        trained_with_other_code=facts is not None and facts["codes"] != [training_code.get(row["run"])],
        measurements=read_measurements(
            results / "metrics",
            model=row["snapshot"],
            sampler=row["sampler"],
            seeds=plan["layout"]["seeds"],
            metrics=plan["metrics"],
        ),
    )
