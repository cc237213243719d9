"""Functions of inputs.smk, and of converted teachers and class embeddings: what comes from outside, and its copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestep.config.reading import run_backbones
from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.inputs import absent, is_offline, placed_at
from onestep.plan import Plan, measured


def needed_inputs(plan: Plan) -> list[str]:
    """The inputs of all runs and tables, in the order of the config."""
    needed = set(_needed(plan.experiment))
    return [name for name in plan.experiment.inputs if name in needed]


def input_source(plan: Plan, name: str) -> dict[str, Any]:
    """Return an input's block of the config."""
    return plan.document["inputs"][name]


def input(plan: Plan, name: str) -> Path:
    """Return the file of an input."""
    return placed_at(input_source(plan, name), name=name)


def fetched_from(plan: Plan, name: str) -> str:
    """Return the source of an input, without its licence."""
    return canonical_json({key: value for key, value in input_source(plan, name).items() if key != "licence"})


def stop_if_absent_offline(plan: Plan, name: str) -> list[Path]:
    """Return no files; but stop before any job where an input is absent and the network must not be used.

    Raises:
        ValueError: An input is absent; the message has the fix.
    """
    if is_offline() and (problem := absent(input_source(plan, name), name=name)) is not None:
        raise ValueError(problem)
    return []


def dataset_source(plan: Plan, dataset: str) -> Path:
    """Return the input of a dataset."""
    return weights_or_input(plan, None, plan.experiment.datasets[dataset].input)


def dataset_code(plan: Plan, dataset: str) -> str:
    """Return the code fingerprint of a dataset's preparation."""
    return plan.fingerprints.of_stage("prepare", [("data", plan.experiment.datasets[dataset].name)])


def teacher_source(plan: Plan, teacher: str) -> Path:
    """Return the checkpoint or snapshot of a teacher."""
    described = plan.experiment.teachers[teacher]
    return weights_or_input(plan, described.run, described.pickle)


def teacher_options(plan: Plan, teacher: str) -> str:
    """Return the options of a teacher's conversion."""
    law = plan.experiment.teachers[teacher].preconditioning
    return "" if law is None else f"--preconditioning {law}"


def backbone(plan: Plan, name: str) -> Path:
    """Return the weights of a backbone."""
    described = plan.experiment.backbones[name]
    return weights_or_input(plan, described.run, described.input)


def class_embeddings(plan: Plan, name: str) -> Path:
    """Return a table of class embeddings."""
    source = plan.experiment.class_embeddings[name].input
    return plan.results.class_embeddings(name) if source is None else input(plan, source)


def embedding_backbone(plan: Plan, name: str) -> Path:
    """Return the backbone that computes a table of class embeddings."""
    chosen = plan.experiment.class_embeddings[name].backbone
    assert chosen is not None, name
    return backbone(plan, chosen)


def embedding_data(plan: Plan, name: str) -> Path:
    """Return the dataset archive of a table of class embeddings."""
    dataset = plan.experiment.class_embeddings[name].dataset
    assert dataset is not None, name
    return plan.results.data(dataset)


def embedding_options(plan: Plan, name: str) -> str:
    """Return the options of `onestep embed`."""
    table = plan.experiment.class_embeddings[name]
    timm = None if table.backbone is None else plan.experiment.backbones[table.backbone].timm
    return " ".join([f"--resolution {table.resolution}", *([] if timm is None else [f"--timm {timm}"])])


def weights_or_input(plan: Plan, run: str | None, source: str | None) -> Path:
    """Return the last snapshot of a run, or else an input."""
    if run is not None:
        return plan.results.snapshot(run, plan.experiment.runs[run].images)
    assert source is not None
    return input(plan, source)


def _needed(experiment: Experiment) -> Iterator[str | None]:
    """Yield the inputs of runs and tables; None where something needs no input."""
    runs, tables = experiment.runs.values(), experiment.tables.values()
    rows = [row for table in tables for row in table.rows]
    datasets: list[str | None] = [run.dataset for run in runs]
    datasets += [table.dataset for table in tables] + [row.dataset for row in rows]
    datasets += [each.dataset for each in experiment.class_embeddings.values()]
    for dataset in (experiment.datasets[name] for name in datasets if name is not None):
        yield dataset.input
        yield from dataset.references.values()
    teachers = [run.teacher for run in runs] + [row.teacher for row in rows]
    yield from (experiment.teachers[name].pickle for name in teachers if name is not None)
    for run in runs:
        yield from (experiment.backbones[name].input for name in run_backbones(run))
        if run.discriminator is not None and run.discriminator.class_embeddings is not None:
            yield experiment.class_embeddings[run.discriminator.class_embeddings].input
    for metric in (experiment.metrics[name] for name in {each.metric for each in measured.of_experiment(experiment)}):
        if metric.features is not None:
            yield experiment.features[metric.features].input
