"""Functions of measure.smk: metrics and selections."""

from __future__ import annotations

from pathlib import Path

from onestep import plugins
from onestep.files import canonical_json
from onestep.models import Selected, parse_model
from onestep.plan import Plan, inputs, measured


def generated_features(plan: Plan, model: str, sampler: str, seeds: str, metric: str) -> Path:
    """Return the features of generated images that a metric reads."""
    return plan.results.features(model, sampler, seeds, plan.experiment.metrics[metric].features)


def real_features(plan: Plan, model: str, sampler: str, seeds: str, metric: str) -> Path:
    """Return the real side of a metric: the reference of the model's dataset, or else the dataset's features.

    A metric of generated images alone, of a dataset with references, gets the generated features once more: the
    dataset's own images may be absent.
    """
    dataset = _dataset_of(plan, parse_model(model).name)
    compares = plugins.load("metrics", plan.experiment.metrics[metric].name).compares
    if "real" not in compares and plan.experiment.datasets[dataset].references:
        return generated_features(plan, model, sampler, seeds, metric)
    return _reference(plan, dataset, metric) or dataset_features(plan, dataset, metric)


def _dataset_of(plan: Plan, name: str) -> str:
    if name in plan.experiment.runs:
        return plan.experiment.runs[name].dataset
    tables = plan.experiment.tables.values()
    return next(table.dataset_of(row) for table in tables for row in table.rows if row.teacher == name)


def dataset_features(plan: Plan, dataset: str, metric: str) -> Path:
    """Return the features of a dataset that a metric reads."""
    return plan.results.real_features(dataset, plan.experiment.metrics[metric].features)


def reference_images(plan: Plan, name: str) -> Path:
    """Return an input with real images."""
    return inputs.input(plan, name)


def published_reference(plan: Plan, dataset: str, metric: str) -> Path:
    """Return the published reference of a dataset for a metric.

    Raises:
        ValueError: There is none.
    """
    reference = _reference(plan, dataset, metric)
    if reference is None:
        raise ValueError(f"datasets.{dataset}.references: got none for {metric}, expected an input")
    return reference


def _reference(plan: Plan, dataset: str, metric: str) -> Path | None:
    """Return published statistics, or the features of published images where a metric needs them."""
    source = plan.experiment.datasets[dataset].references.get(metric)
    if source is None:
        return None
    chosen = plan.experiment.metrics[metric]
    if plugins.load("metrics", chosen.name).takes_statistics:
        return inputs.input(plan, source)
    return plan.results.reference_features(source, chosen.features)


def metric_options(plan: Plan, metric: str) -> str:
    """Return a metric with its options."""
    return plan.options("metrics", metric)


def metric_code(plan: Plan, metric: str) -> str:
    """Return the code fingerprint of a metric."""
    return plan.fingerprints.of_stage("measure", [("metrics", plan.experiment.metrics[metric].name)])


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
    metric = plugins.load("metrics", plan.experiment.metrics[selected.choice.metric].name)
    return canonical_json(
        {
            "model": model,
            "direction": metric.values[selected.choice.value],
            "images": [each.images for each in measured.candidates(plan.experiment, selected)],
        }
    )


def selection_code(plan: Plan) -> str:
    """Return the code fingerprint of selections."""
    return plan.fingerprints.of_stage("select")


def _selected(model: str) -> Selected:
    selected = parse_model(model)
    assert isinstance(selected, Selected), model
    return selected
