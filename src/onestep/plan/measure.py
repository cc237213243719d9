"""Functions of measure.smk: metrics and selections."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep import components
from onestep.config.latent_checks import pixels_of
from onestep.files import canonical_json
from onestep.models import Selected, parse_model
from onestep.plan import Plan, inputs, measured


def metric_files(plan: Plan, model: str, sampler: str, seeds: str, metric: str) -> dict[str, list[Path]]:
    """Return the files of a metric's inputs, by option of `onestep measure`; of several networks one for each.

    A metric of generated images alone has a reference too, so that its numbers record it; but not where the dataset
    has published references, since the dataset's own images may be absent.
    """
    block, dataset = plan.experiment.metrics[metric], _dataset_of(plan, parse_model(model).name)
    needs = _class(plan, metric).inputs
    files: dict[str, list[Path]] = {}
    if block.networks:
        assert block.held_out is not None, metric
        files["generated"] = [plan.results.features(model, sampler, seeds, name) for name in block.networks]
        files["real"] = [plan.results.real_features(dataset, name) for name in block.networks]
        files["held_out"] = [plan.results.real_features(block.held_out, name) for name in block.networks]
    if block.features is not None:
        files["generated"] = [plan.results.features(model, sampler, seeds, block.features)]
        each = measured.Measured(model=parse_model(model), sampler=sampler, seeds=seeds, metric=metric)
        other = measured.compared_with(plan.experiment, each)
        if other is not None:
            files["real"] = [plan.results.block_features(other, block.features)]
        elif "real" in needs or not plan.experiment.datasets[dataset].references:
            files["real"] = [_reference(plan, dataset, metric) or plan.results.real_features(dataset, block.features)]
    if "pixels" in needs:
        files["pixels"] = [plan.results.samples(model, sampler, seeds)]
    if "real_pixels" in needs:
        files["real_pixels"] = [plan.results.data(dataset)]
    return files


@dataclass(frozen=True, kw_only=True)
class MeasureRule:
    """What differs between two rules that measure several metrics of a block at once: the metrics."""

    name: str
    blocks: str  # pattern of its seed blocks, `{model}/{sampler}/{seeds}`
    metrics: tuple[str, ...]


def measure_rules(plan: Plan, *, asked: Iterable[str] | None = None) -> list[MeasureRule]:
    """The rules that measure a block at once: one for each set of two or more metrics that a block lacks.

    A metric that is measured has a job of its own, so that what is added later, or changes, leaves the others. In a job
    of another process, `asked` has the names of that job's rules, for any block.
    """
    blocks: dict[tuple[str, ...], list[str]] = {}
    for block, metrics in plan.metrics_by_block.items():
        if asked is None:
            is_due = is_trained_again(plan, block)
            sets = [tuple(m for m in metrics if is_due or not plan.results.block_metric(block, m).exists())]
        else:
            sets = [found for size in range(2, len(metrics) + 1) for found in itertools.combinations(metrics, size)]
            sets = [each for each in sets if _rule_name(each) in asked]
        for found in sets:
            if len(found) > 1:
                blocks.setdefault(found, []).append(block)
    return [
        MeasureRule(name=_rule_name(metrics), blocks="|".join(map(re.escape, members)), metrics=metrics)
        for metrics, members in blocks.items()
    ]


def _rule_name(metrics: Iterable[str]) -> str:
    return f"measure_{'_and_'.join(metrics)}"


def is_trained_again(plan: Plan, block: str) -> bool:
    """Whether the model of a seed block is about to be trained again."""
    return parse_model(block.split("/")[0]).name in plan.trained_again


def block_files(plan: Plan, block: str, metrics: Iterable[str]) -> list[Path]:
    """Return the files of the inputs of several metrics of a seed block."""
    model, sampler, seeds = block.split("/")
    files = [paths for metric in metrics for paths in metric_files(plan, model, sampler, seeds, metric).values()]
    return list(dict.fromkeys(itertools.chain(*files)))


def block_options(plan: Plan, block: str, metrics: Iterable[str]) -> str:
    """Return several metrics of a seed block with their options and files, as JSON for `onestep measure --each`."""
    model, sampler, seeds = block.split("/")
    dataset, found = _dataset_of(plan, parse_model(model).name), {}
    for metric in metrics:
        files = {
            key: str(paths[0]) if len(paths) == 1 else [*map(str, paths)]
            for key, paths in metric_files(plan, model, sampler, seeds, metric).items()
        }
        source = plan.experiment.datasets[dataset].references.get(metric)
        named = {} if source is None else {"real_input": source}
        found[metric] = {"metric": plan.block("metrics", metric), **files, **named}
    return canonical_json(found)


def metric_file_options(plan: Plan, wildcards: Any, files: Any) -> str:
    """Return a rule's files and its published reference as options of `onestep measure`, quoted for a shell.

    The wildcards are `metric`, and `model` or `dataset`.
    """
    found = dict(wildcards.items())
    dataset = found.get("dataset") or _dataset_of(plan, parse_model(found["model"]).name)
    source = plan.experiment.datasets[dataset].references.get(found["metric"])
    named = [(key, path) for key, each in files.items() for path in ([each] if isinstance(each, str) else each)]
    options = [word for key, path in named for word in (f"--{key.replace('_', '-')}", str(path))]
    return shlex.join([*options, *([] if source is None else ["--real-input", source])])


@functools.cache
def _class(plan: Plan, metric: str) -> Any:
    """Return the class of a metric or its outline."""
    return components.outline("metrics", plan.experiment.metrics[metric].name)


@functools.cache
def _dataset_of(plan: Plan, name: str) -> str:
    run = plan.experiment.runs.get(name)
    if run is not None and (pixels := pixels_of(plan.experiment, run.dataset)) is not None:
        return pixels
    tables = plan.experiment.tables.values()
    found = [table.dataset_of(row) for table in tables for row in table.rows if name in (row.teacher, *row.members)]
    if not found:
        raise ValueError(f"{name}: got no dataset of pixels, expected a row of a table that has one")
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
    if _class(plan, metric).takes_statistics:
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
