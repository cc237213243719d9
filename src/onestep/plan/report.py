"""Functions of report.smk: tables and the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestep import components
from onestep.config.sections import RowBlock, TableBlock
from onestep.files import canonical_json, sha256_of_file
from onestep.models import Selected, Snapshot
from onestep.plan import Plan, measured
from onestep.plan.measure import metric_file
from onestep.plan.train import training_code


def table_metrics(plan: Plan, table: str) -> list[Path]:
    """Return the numbers of a table."""
    return [metric_file(plan, each) for each in measured.of_table(plan.experiment, table)]


def table_summaries(plan: Plan, table: str) -> list[Path]:
    """Return the summaries of a table's runs."""
    runs = dict.fromkeys(row.name for row in measured.measured_rows(plan.experiment, table) if row.trains)
    return [plan.results.summary(run) for run in runs]


def table_selections(plan: Plan, table: str) -> list[Path]:
    """Return the records of a table's selected snapshots."""
    models = dict.fromkeys(row.model for row in measured.measured_rows(plan.experiment, table))
    return [plan.results.selection(model, ".json") for model in models if isinstance(model, Selected)]


def table_options(plan: Plan, table: str) -> str:
    """Return a table's layout, the metrics of its columns, and its rows."""
    layout, block = plan.experiment.tables[table], plan.document["tables"][table]
    metrics = plan.experiment.metrics
    return canonical_json(
        {
            "name": table,
            "layout": {key: value for key, value in block.items() if key not in ("rows", "curves")},
            "drawn": layout.drawn,
            "metrics": {name: {"name": metrics[name].name} for name in measured.table_metrics(layout)},
            "rows": [_row_options(plan, row, table=layout) for row in layout.rows],
        }
    )


def _row_options(plan: Plan, row: RowBlock, *, table: TableBlock) -> dict[str, Any]:
    sources = {column: number.source for column, number in row.published.items() if number.source is not None}
    options = {
        "run": row.run or row.teacher,
        "label": row.label or row.run or row.teacher,
        "dataset": table.dataset_of(row),
        "published": {column: number.value for column, number in row.published.items()},
        "sources": sources,
    }
    if row.sampler is None:
        nothing = dict.fromkeys(("sampler", "model", "images_seen", "ema"))
        return {**options, **nothing, "nfe": row.nfe, "images": row.images}
    models = measured.row_models(plan.experiment, row, table=table)
    sampler = components.build_outline("sampling", plan.experiment.samplers[row.sampler])
    assert sampler is not None, row.sampler
    family = {"models": [str(model) for model in models]} if row.runs else {}
    return {
        **options,
        **family,
        "sampler": row.sampler,
        "nfe": sampler.nfe,
        "images": None,
        "images_seen": models[0].images if isinstance(models[0], Snapshot) else None,
        "model": None if family else str(models[0]),
        "ema": None if row.run is None else row.ema or plan.experiment.runs[models[0].name].ema.half_life,
    }


def table_training_code(plan: Plan, table: str) -> str:
    """Return the fingerprint of today's training code by run: a table marks runs that other code trained."""
    rows = measured.measured_rows(plan.experiment, table)
    return canonical_json({row.name: training_code(plan, row.name) for row in rows if row.trains})


def page_inputs(plan: Plan) -> list[Path]:
    """Return the files that the page shows."""
    return list(dict.fromkeys([*_page_tables(plan), *_page_studies(plan), *_page_runs(plan)]))


def _page_tables(plan: Plan) -> Iterator[Path]:
    for name, table in plan.experiment.tables.items():
        yield plan.results.table(name, ".json")
        for row in measured.measured_rows(plan.experiment, name):
            yield plan.results.grid(row.model, row.sampler, table.seeds[0])
        yield from (metric_file(plan, each) for each in measured.of_curves(plan.experiment, name))


def _page_studies(plan: Plan) -> Iterator[Path]:
    for study in plan.experiment.studies:
        yield from (plan.results.study(study, ".json"), plan.results.study(study, ".svg"))


def _page_runs(plan: Plan) -> Iterator[Path]:
    for run in plan.experiment.runs:
        yield from (plan.results.run_config(run), plan.results.log(run), plan.results.summary(run))


def page_options(plan: Plan) -> str:
    """Return the config without mirrors, site and container: those do not change the page."""
    elsewhere = ("mirrors", "launch", "container")
    return canonical_json({key: value for key, value in plan.document.items() if key not in elsewhere})


def page_code(plan: Plan) -> str:
    """Return the code fingerprint of the page, with its template and style sheets."""
    metrics = [("metrics", metric.name) for metric in plan.experiment.metrics.values()]
    return " ".join([plan.fingerprints.of_stage("report", metrics), *_style("*.css", "*.jinja")])


def _style(*patterns: str) -> list[str]:
    """Return digests of the templates and style sheets that match any of `patterns`."""
    folder = Path(__file__).parents[1] / "report"
    return [sha256_of_file(path)[:16] for pattern in patterns for path in sorted(folder.glob(pattern))]
