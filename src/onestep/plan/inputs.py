"""Functions of inputs.smk, and of converted teachers and class embeddings: what comes from outside, and its copies."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestep.config import ConfigError
from onestep.config.latent_checks import codec_block
from onestep.config.laws import published_law
from onestep.config.reading import run_backbones
from onestep.config.run import to_document
from onestep.config.sections import BackboneBlock, DatasetBlock, Experiment, ExtractorBlock, TeacherBlock
from onestep.config.starts import pairs_teacher
from onestep.files import canonical_json, read_json
from onestep.folders import describe_folder, files_below, folder_state
from onestep.inputs import absent, is_offline, kept_at, placed_at
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
    """Return the source of an input without its licence; of a folder with its state, so that a changed one reruns."""
    source = {key: value for key, value in input_source(plan, name).items() if key != "licence"}
    state = _folder_state(plan, name)
    return canonical_json(source if state is None else {**source, "state": state})


# The states are compared for every job of a plan, and the folder is listed once.
@functools.cache
def _folder_state(plan: Plan, name: str) -> str | None:
    """Return the state of an input that is a folder, the recorded one if it cannot be listed; None for a file.

    None, too, for an unchanged folder in a record of versions that had no states: its job had no such parameter.
    """
    source = input_source(plan, name)
    record = placed_at(source, name=name)
    if "package" in source or record.suffix != ".folder":
        return None
    recorded, folder = _recorded(record), kept_at(source, name=name)
    try:
        if recorded and "state" not in recorded and _is_as_recorded(recorded, folder, record=record):
            return None
        return folder_state(folder)
    except (OSError, ValueError):  # not here, or not to be listed: its results are valid without it
        return recorded.get("state")


def _recorded(record: Path) -> dict[str, Any]:
    """Return the description of a folder at its last fetch; empty if there is none."""
    try:
        found = read_json(record)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_as_recorded(recorded: dict[str, Any], folder: Path, *, record: Path) -> bool:
    """Whether a folder has the names and sizes of its record, and no file that is newer than the record."""
    newest = max((path.stat().st_mtime_ns for path in files_below(folder)), default=0)
    listing = describe_folder(folder)["listing_sha256"]
    return listing == recorded.get("listing_sha256") and newest <= record.stat().st_mtime_ns


def check_local_files(plan: Plan) -> None:
    """Raise ConfigError if files and folders of this machine that runs and tables need are absent: a line for each."""
    sources = {name: input_source(plan, name) for name in needed_inputs(plan)}
    problems = [absent(source, name=name) for name, source in sources.items() if "file" in source]
    if found := [f"{plan.source}: inputs.{problem}" for problem in problems if problem is not None]:
        raise ConfigError(found)


def stop_if_absent_offline(plan: Plan, name: str) -> list[Path]:
    """Return no files. ValueError: An input is absent that is not to be downloaded; the message has the fix."""
    source = input_source(plan, name)
    if is_offline() and (problem := absent(source, name=name)) is not None:
        raise ValueError(problem)
    return []


def source_of(plan: Plan, block: DatasetBlock | TeacherBlock | BackboneBlock | ExtractorBlock) -> Path:
    """Return the file that an entry of config.yaml is made from: the last snapshot of its run, or its input.

    Of a part of a dataset, it is the archive of that one.
    """
    if not isinstance(block, DatasetBlock) and block.run is not None:
        return plan.results.snapshot(block.run, plan.experiment.runs[block.run].images)
    if isinstance(block, DatasetBlock) and block.dataset is not None:
        return plan.results.data(block.dataset)
    assert block.input is not None, block
    return input(plan, block.input)


def encoded_datasets(plan: Plan) -> list[str]:
    """Return the datasets of latents that a codec encodes."""
    return [name for name in plan.experiment.datasets if codec_block(plan.experiment, name) is not None]


def codec_of_dataset(plan: Plan, dataset: str) -> Path:
    """Return the network that encodes a dataset of latents."""
    block = codec_block(plan.experiment, dataset)
    assert block is not None, dataset
    return plan.results.codec(str(block["input"]))


def codecs(plan: Plan) -> list[str]:
    """Return the inputs that are networks of codecs."""
    found = [run.codec for run in plan.experiment.runs.values()]
    found += [teacher.codec for teacher in plan.experiment.teachers.values()]
    runs = [codec.input for codec in found if codec is not None]
    made = [(codec_block(plan.experiment, name) or {}).get("input") for name in plan.experiment.datasets]
    return list(dict.fromkeys(str(each) for each in [*runs, *made] if each is not None))


def teacher_options(plan: Plan, teacher: str) -> str:
    """Return the options of a teacher's conversion, quoted for a shell."""
    block = plan.experiment.teachers[teacher]
    law = block.preconditioning or published_law(plan.experiment, block)
    options = [] if law is None else ["--preconditioning", law]
    options += [] if block.codec is None else ["--codec", canonical_json(to_document(block.codec))]
    options += ["--without-classes"] if block.without_classes else []
    return shlex.join(options)


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
    """Return the options of `onestep embed`, quoted for a shell."""
    table = plan.experiment.class_embeddings[name]
    timm = None if table.backbone is None else plan.experiment.backbones[table.backbone].timm
    return shlex.join(["--resolution", str(table.resolution), *([] if timm is None else ["--timm", timm])])


def _needed(experiment: Experiment) -> Iterator[str | None]:
    """Yield the inputs of runs and tables; None for entries without an input."""
    runs, tables = experiment.runs.values(), experiment.tables.values()
    rows = [row for table in tables for row in table.rows]
    datasets: list[str | None] = [run.dataset for run in runs]
    datasets += [table.dataset for table in tables] + [row.dataset for row in rows]
    datasets += [each.dataset for each in experiment.class_embeddings.values()]
    metrics = [experiment.metrics[name] for name in {each.metric for each in measured.of_experiment(experiment)}]
    datasets += [metric.held_out for metric in metrics]
    datasets += [experiment.datasets[name].dataset for name in datasets if name is not None]
    for dataset in (experiment.datasets[name] for name in datasets if name is not None):
        yield dataset.input
        yield from dataset.references.values()
    for name in filter(None, datasets):
        yield (codec_block(experiment, name) or {}).get("input")
    teachers = [run.teacher for run in runs] + [row.teacher for row in rows] + [pairs_teacher(run) for run in runs]
    teachers += [run.init.source for run in runs if run.init is not None]
    named = [experiment.teachers[name] for name in filter(None, teachers) if name in experiment.teachers]
    yield from (teacher.input for teacher in named)
    yield from (teacher.codec.input for teacher in named if teacher.codec is not None)
    for run in runs:
        yield None if run.codec is None else run.codec.input
        yield from (experiment.backbones[name].input for name in run_backbones(run))
        if run.discriminator is not None and run.discriminator.class_embeddings is not None:
            yield experiment.class_embeddings[run.discriminator.class_embeddings].input
    for metric in metrics:
        yield from (experiment.features[name].input for name in metric.extractors)
