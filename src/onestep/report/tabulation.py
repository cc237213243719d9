"""From a finished results folder to the files of one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestep.files import read_json
from onestep.models import Selected, parse_model
from onestep.report import numbers
from onestep.report.formats import write_table
from onestep.report.table import Entry, Measurement, read_measurements, tabulate


def write_tables(plan: Mapping[str, Any], *, results: Path, training_code: Mapping[str, str], folder: Path) -> None:
    """Write `{table}.json .csv .md .tex .svg` from the numbers that were measured.

    Args:
        plan: `name`, `layout` (the table's block of config.yaml), `metrics` by name, `drawn`, the column that
            is drawn, and `rows`: what the config knows of an `Entry`; where a snapshot was chosen, its `images_seen` is
            None and its `model` says how.
        results: The results folder.
        training_code: Fingerprint of the training code that is here now, by run.
        folder: Where the files go.

    Raises:
        ValueError: A file is damaged, or numbers of one column cannot be compared.
    """
    config = {"tables": {plan["name"]: plan["layout"]}, "metrics": plan["metrics"]}
    entries = [_entry(row, plan=plan, results=results, training_code=training_code) for row in plan["rows"]]
    write_table(folder, table=tabulate(config, name=plan["name"], entries=entries), drawn=plan["drawn"])


def _entry(
    row: Mapping[str, Any], *, plan: Mapping[str, Any], results: Path, training_code: Mapping[str, str]
) -> Entry:
    facts = _facts(row["run"], results=results)
    return Entry(
        **{**row, **_selected(row, layout=plan["layout"], trained=facts is not None, results=results)},
        frozen_share=None if facts is None else facts["frozen_share"],
        # Every life of the run counts: a resumed run may have been trained by two versions.
        trained_with_other_code=facts is not None and facts["codes"] != [training_code.get(row["run"])],
        measurements=_measurements(row, plan=plan, results=results),
    )


def _facts(run: str | None, *, results: Path) -> Mapping[str, Any] | None:
    """Return what a run says of itself; None for what was not trained here."""
    summary = None if run is None else results / "runs" / run / "summary.json"
    return read_json(summary) if summary is not None and summary.exists() else None


def _selected(row: Mapping[str, Any], *, layout: Mapping[str, Any], trained: bool, results: Path) -> dict[str, Any]:
    """Return which snapshot stands in a row, and how it was selected."""
    if row["model"] is None or not isinstance(parse_model(row["model"]), Selected):
        return {"snapshot": row["model"], "snapshot_policy": "last" if trained else None}
    chosen = read_json(results / "selections" / f"{row['model']}.json")
    return {
        "snapshot": chosen["snapshot"],
        "images_seen": chosen["images"],
        "snapshot_policy": policy(chosen, column=layout["select"].removeprefix("best_")),
    }


def policy(chosen: Mapping[str, Any], *, column: str) -> str:
    """Return in words how a snapshot was chosen: "lowest FD of 4, seeds 0-1999"."""
    extreme = {"lower": "lowest", "higher": "highest"}[chosen["direction"]]
    return f"{extreme} {numbers.heading(column)} of {len(chosen['candidates'])}, seeds {chosen['seeds']}"


def _measurements(row: Mapping[str, Any], *, plan: Mapping[str, Any], results: Path) -> dict[str, list[Measurement]]:
    if row["model"] is None:
        return {}
    return read_measurements(
        results / "metrics",
        model=row["model"],
        sampler=row["sampler"],
        seeds=plan["layout"]["seeds"],
        metrics=plan["metrics"],
    )
