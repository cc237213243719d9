"""Functions of inputs.smk, and of converted teachers and class embeddings: what comes from outside, and its copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestep.config.reading import run_backbones
from onestep.config.sections import BackboneBlock, DatasetBlock, Experiment, ExtractorBlock, TeacherBlock
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
    """Return no files. ValueError: An input is absent that is not to be downloaded; the message has the fix."""
    source = input_source(plan, name)
    if (is_offline() or "file" in source) and (problem := absent(source, name=name)) is not None:
        raise ValueError(problem)
    return []


def source_of(plan: Plan, block: DatasetBlock | TeacherBlock | BackboneBlock | ExtractorBlock) -> Path:
    """Return the file that an entry of config.yaml is made from: the last snapshot of its run, or its input."""
    if not isinstance(block, DatasetBlock) and block.run is not None:
        return plan.results.snapshot(block.run, plan.experiment.runs[block.run].images)
    name = block.pickle if isinstance(block, TeacherBlock) else block.input
    assert name is not None, block
    return input(plan, name)


def teacher_options(plan: Plan, teacher: str) -> str:
    """Return the options of a teacher's conversion."""
    law = plan.experiment.teachers[teacher].preconditioning
    return "" if law is None else f"--preconditioning {law}"


def class_embeddings(plan: Plan, name: str) -> Path:
    """Return a table of class embeddings."""
    source = plan.experiment.class_embeddings[name].input
    return plan.results.class_embeddings(name) if source is None else input(plan, source)


def embedding_files(plan: Plan, name: str) -> dict[str, Path]:
    """Return the backbone and the dataset archive from which a table of class embeddings is computed."""
    table = plan.experiment.class_embeddings[name]
    assert table.backbone is not None and table.dataset is not None, name
    return {
        "backbone": source_of(plan, plan.experiment.backbones[table.backbone]),
        "data": plan.results.data(table.dataset),
    }


def embedding_options(plan: Plan, name: str) -> str:
    """Return the options of `onestep embed`."""
    table = plan.experiment.class_embeddings[name]
    timm = None if table.backbone is None else plan.experiment.backbones[table.backbone].timm
    return " ".join([f"--resolution {table.resolution}", *([] if timm is None else [f"--timm {timm}"])])


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
