"""Functions of measure.smk: metrics and selections."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from onestep import components
from onestep.files import canonical_json
from onestep.models import Selected, parse_model
from onestep.plan import Plan, inputs, measured


def metric_files(plan: Plan, model: str, sampler: str, seeds: str, metric: str) -> dict[str, Path]:
    """Return the files of a metric's inputs, by option of `onestep measure`.

    A metric of generated images alone has a reference too, so that its numbers record it; but not where the dataset
    has published references, since the dataset's own images may be absent.
    """
    block, dataset = plan.experiment.metrics[metric], _dataset_of(plan, parse_model(model).name)
    needs = components.outline("metrics", block.name).inputs
    files = {}
    if block.features is not None:
        files["generated"] = plan.results.features(model, sampler, seeds, block.features)
        if "real" in needs or not plan.experiment.datasets[dataset].references:
            files["real"] = _reference(plan, dataset, metric) or plan.results.real_features(dataset, block.features)
    if "pixels" in needs:
        files["pixels"] = plan.results.samples(model, sampler, seeds)
    if "real_pixels" in needs:
        files["real_pixels"] = plan.results.data(dataset)
    return files


def metric_file_options(plan: Plan, wildcards: Any, files: Any) -> str:
    """Return a rule's files and its published reference as options of `onestep measure`, quoted for a shell.

    The wildcards are `metric`, and `model` or `dataset`.
    """
    found = dict(wildcards.items())
    dataset = found.get("dataset") or _dataset_of(plan, parse_model(found["model"]).name)
    source = plan.experiment.datasets[dataset].references.get(found["metric"])
    options = [word for key, path in files.items() for word in (f"--{key.replace('_', '-')}", str(path))]
    return shlex.join([*options, *([] if source is None else ["--real-input", source])])


def _dataset_of(plan: Plan, name: str) -> str:
    if name in plan.experiment.runs:
        return plan.experiment.runs[name].dataset
    tables = plan.experiment.tables.values()
    found = [table.dataset_of(row) for table in tables for row in table.rows if row.teacher == name]
    if not found:
        raise ValueError(f"teacher {name}: got no dataset, expected a row of a table that has one")
    return found[0]


def reference_files(plan: Plan, dataset: str, metric: str) -> dict[str, Path]:
    """Return a dataset's own features and its published reference for a metric. ValueError: It has none."""
    real, features = _reference(plan, dataset, metric), plan.experiment.metrics[metric].features
    if real is None:
        raise ValueError(f"datasets.{dataset}.references: got none for {metric}, expected an input")
    assert features is not None, metric
    return {"generated": plan.results.real_features(dataset, features), "real": real}


def _reference(plan: Plan, dataset: str, metric: str) -> Path | None:
    """Return published statistics, or the features of published images where a metric needs them."""
    source = plan.experiment.datasets[dataset].references.get(metric)
    if source is None:
        return None
    chosen = plan.experiment.metrics[metric]
    if components.outline("metrics", chosen.name).takes_statistics:
        return inputs.input(plan, source)
    assert chosen.features is not None, metric
    return plan.results.reference_features(source, chosen.features)


def metric_file(plan: Plan, each: measured.Measured) -> Path:
    """Return the file of a number."""
    return plan.results.metric(each.model, each.sampler, each.seeds, each.metric)


def candidates(plan: Plan, model: str) -> list[Path]:
    """Return the snapshots among which one is selected."""
    return [plan.results.weights(each) for each in measured.candidates(plan.experiment, _selected(model))]


def candidate_metrics(plan: Plan, model: str) -> list[Path]:
    """Return the numbers by which it is selected."""
    return [metric_file(plan, each) for each in measured.of_candidates(plan.experiment, _selected(model))]


def selection_options(plan: Plan, model: str) -> str:
    """Return the model, the direction of its number, and the images seen of the candidates."""
    selected = _selected(model)
    metric = components.outline("metrics", plan.experiment.metrics[selected.choice.metric].name)
    return canonical_json(
        {
            "model": model,
            "direction": metric.values[selected.choice.value],
            "images": [each.images for each in measured.candidates(plan.experiment, selected)],
        }
    )


def _selected(model: str) -> Selected:
    selected = parse_model(model)
    assert isinstance(selected, Selected), model
    return selected
