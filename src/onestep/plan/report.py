"""Functions of report.smk: tables and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onestep import components
from onestep.config.reading import networks_seen
from onestep.config.sections import Experiment
from onestep.config.tables import RowBlock, TableBlock
from onestep.files import canonical_json, sha256_of_file
from onestep.models import Model, Selected, Snapshot, Teacher
from onestep.plan import Plan, measured
from onestep.plan.measure import metric_file
from onestep.plan.train import training_code


def table_files(plan: Plan, table: str) -> dict[str, list[Path]]:
    """Return the numbers of a table, the summaries of its runs, and the records of its selected snapshots."""
    models = dict.fromkeys(model for model, _ in measured.measured_rows(plan.experiment, table))
    return {
        "metrics": [metric_file(plan, each) for each in measured.of_table(plan.experiment, table)],
        "summaries": [plan.results.summary(run) for run in _trained(plan, table)],
        "choices": [plan.results.selection(model, ".json") for model in models if isinstance(model, Selected)],
    }


def table_options(plan: Plan, table: str) -> str:
    """Return a table's layout, the metrics of its columns, and its rows."""
    layout, block = plan.experiment.tables[table], plan.document["tables"][table]
    return canonical_json(
        {
            "name": table,
            "layout": {key: value for key, value in block.items() if key not in ("rows", "curves", "rule")},
            "drawn": layout.drawn,
            "metrics": {each: _metric(plan, each) for each in measured.table_metrics(layout)},
            "rows": table_rows(plan.experiment, table),
        }
    )


def _metric(plan: Plan, name: str) -> dict[str, Any]:
    return {key: value for key, value in plan.document["metrics"][name].items() if key in ("name", "against")}


def table_rows(experiment: Experiment, table: str) -> list[dict[str, Any]]:
    """Return what the config determines of each row of a table."""
    layout = experiment.tables[table]
    return [_row_options(experiment, row, table=layout) for row in layout.rows]


def _row_options(experiment: Experiment, row: RowBlock, *, table: TableBlock) -> dict[str, Any]:
    options = {
        "run": row.run or row.teacher,
        "label": row.label or row.run or row.teacher,
        "dataset": table.dataset_of(row),
        "published": {column: number.value for column, number in row.published.items()},
        "sources": {column: number.source for column, number in row.published.items() if number.source is not None},
    }
    if row.sampler is None:
        nothing = dict.fromkeys(("sampler", "model", "images_seen", "ema"))
        return {**options, **nothing, "nfe": row.nfe, "images": row.images}
    models = measured.row_models(experiment, row, table=table)
    sampler = components.build_outline("sampling", experiment.samplers[row.sampler])
    assert sampler is not None, row.sampler
    family = {"models": list(map(str, models))} if row.runs else {}
    seen = _trained_on(experiment, [model.name for model in models if not isinstance(model, Teacher)], table=table)
    return {
        **options,
        **family,
        **({"trained_on": seen} if seen else {}),
        **({"fast": True} if any(_is_fast(experiment, model) for model in models) else {}),
        "sampler": row.sampler,
        "nfe": sampler.nfe,
        "images": None,
        "images_seen": models[0].images if isinstance(models[0], Snapshot) else None,
        "model": None if family else str(models[0]),
        "ema": None if row.run is None else row.ema or experiment.runs[models[0].name].ema.half_life,
    }


def _is_fast(experiment: Experiment, model: Model) -> bool:
    return not isinstance(model, Teacher) and experiment.runs[model.name].fast


def _trained_on(experiment: Experiment, runs: list[str], *, table: TableBlock) -> list[str]:
    """Return the columns with features of networks that were part of the training of one of the runs."""
    learned = set().union(*(networks_seen(experiment, run) for run in runs))
    found = []
    for column, source in table.columns.items():
        features = [experiment.features[name] for name in experiment.metrics[source.partition(".")[0]].extractors]
        if learned.intersection((each.run, each.input) for each in features):
            found.append(column)
    return found


def table_training_code(plan: Plan, table: str) -> str:
    """Return the fingerprint of today's training code by run: a table marks runs that other code trained."""
    return canonical_json({run: training_code(plan, run) for run in _trained(plan, table)})


def _trained(plan: Plan, table: str) -> list[str]:
    models = [model for model, _ in measured.measured_rows(plan.experiment, table)]
    return list(dict.fromkeys(model.name for model in models if not isinstance(model, Teacher)))


def page_inputs(plan: Plan) -> list[Path]:
    """Return the files that the page shows."""
    results, found = plan.results, []
    for name, table in plan.experiment.tables.items():
        found.append(results.table(name, ".json"))
        rows = measured.measured_rows(plan.experiment, name)
        found += [results.grid(model, sampler, table.seeds[0]) for model, sampler in rows]
        found += [metric_file(plan, each) for each in measured.of_curves(plan.experiment, name)]
    for study in measured.default_studies(plan.experiment):
        found += [results.study(study, ".json"), results.study(study, ".svg")]
    runs = measured.default_runs(plan.experiment)
    for name in dict.fromkeys(plan.experiment.runs[run].dataset for run in runs):
        found += [results.data(name, ".json"), results.data(name, ".png")]
    for run in runs:
        found += [results.run_config(run), results.log(run), results.summary(run)]
    return list(dict.fromkeys(found))


def page_options(plan: Plan) -> str:
    """Return the config without mirrors, site and container: those do not change the page."""
    elsewhere = ("mirrors", "launch", "container")
    return canonical_json({key: value for key, value in plan.document.items() if key not in elsewhere})


def page_code(plan: Plan) -> str:
    """Return the code fingerprint of the page, with its template and style sheets."""
    metrics = [("metrics", metric.name) for metric in plan.experiment.metrics.values()]
    folder = Path(__file__).parents[1] / "report"
    style = [*sorted(folder.glob("*.css")), *sorted(folder.glob("*.jinja"))]
    return " ".join([plan.fingerprints.of_stage("report", metrics), *(sha256_of_file(path)[:16] for path in style)])
