"""Consistency of datasets of latents with the codecs of runs, and with what needs pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onestep import components
from onestep.config.blocks import Origin
from onestep.config.messages import MISSING, Place, Problem, got, unknown
from onestep.config.run import Run, to_document
from onestep.config.sections import Experiment
from onestep.files import read_json

_EXECUTION = ("rows", "posterior")  # options of a codec that do not change latents as they are stored


def holds_latents(experiment: Experiment, dataset: str) -> bool:
    """Return whether a dataset is one of latents, as its class states."""
    block = experiment.datasets.get(dataset)
    return block is not None and components.describe("data", block.name).constants.get("latents") is True


def codec_block(experiment: Experiment, dataset: str) -> Mapping[str, Any] | None:
    """Return the block of the codec that encodes a dataset; None for another dataset."""
    block = experiment.datasets.get(dataset)
    found = None if block is None or not holds_latents(experiment, dataset) else block.options.get("codec")
    return found if isinstance(found, Mapping) else None


def pixels_of(experiment: Experiment, dataset: str) -> str | None:
    """Return the dataset of pixels with which images of a run are compared; None for latents from outside."""
    if not holds_latents(experiment, dataset):
        return dataset
    return experiment.datasets[dataset].dataset


def codec_sizes(experiment: Experiment, codec: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return factor and latent channels of an autoencoder in a folder of this machine; None if they are not known."""
    source = experiment.inputs.get(str(codec.get("input")))
    file = None if source is None else source.file
    for config in () if file is None else (Path(file, "config.json"), Path(file, "vae", "config.json")):
        with contextlib.suppress(OSError, ValueError):
            found = read_json(config, {"block_out_channels": [int], "latent_channels": int})
            return 1 << (len(found["block_out_channels"]) - 1), found["latent_channels"]
    return None


def latent_problems(experiment: Experiment, *, declared: Mapping[str, Mapping[str, Origin]]) -> Iterator[Problem]:
    """Yield what is wrong with datasets of latents, and with runs and tables that name them or a codec."""
    for name, block in experiment.datasets.items():
        codec = codec_block(experiment, name)
        if codec is not None:
            yield from unknown(("datasets", name, "codec", "input"), codec.get("input"), experiment.inputs, of="inputs")
        if block.dataset is not None and holds_latents(experiment, block.dataset):
            yield Problem(("datasets", name, "dataset"), f"{got(block.dataset)}, expected a dataset of pixels")
    for name, teacher in experiment.teachers.items():
        if teacher.codec is not None:
            yield from unknown(
                ("teachers", name, "codec", "input"), teacher.codec.input, experiment.inputs, of="inputs"
            )
            if teacher.run is not None:
                yield Problem(
                    ("teachers", name, "codec"), f"got a codec, and runs.{teacher.run} has it. Fix: remove it"
                )
    for name, run in experiment.runs.items():
        yield from _run_problems(run, experiment, declared=declared[name], place=("runs", name))
    for here, dataset in _datasets_of_pixels(experiment):
        if dataset is not None and holds_latents(experiment, dataset):
            whole = experiment.datasets[dataset].dataset
            fix = "" if whole is None else f". Fix: {whole}"
            yield Problem(here, f"{got(dataset)}, a dataset of latents, expected one of pixels{fix}")


def _run_problems(
    run: Run, experiment: Experiment, *, declared: Mapping[str, Origin], place: Place
) -> Iterator[Problem]:
    of, codec = f"datasets.{run.dataset}", run.codec
    if not holds_latents(experiment, run.dataset):
        if codec is not None and codec.input is not None and run.dataset in experiment.datasets:
            fix = f"Fix: a dataset {{name: encoded, dataset: {run.dataset}, codec: ...}}"
            yield Problem((*place, "codec"), f"{got(codec.name)} with pixels ({of}), expected latents. {fix}")
        return
    if codec is None:
        yield Problem((*place, "codec"), f"{MISSING}, because {of} has latents. Fix: name the one that made them")
        return
    made, own = codec_block(experiment, run.dataset), to_document(codec)
    for key in dict.fromkeys([*(made or ()), *own]) if made is not None else ():
        assert made is not None
        if key not in _EXECUTION and to_document(made.get(key)) != own.get(key):
            expected = f"expected {to_document(made.get(key))}, that of {of}"
            yield Problem((*place, "codec", key), f"{got(own.get(key))}, {expected}. Fix: remove codec, the default")
    if any(each.kind == "FeatureNetwork" for each in declared.values()):
        found = f"{got(run.objective.name)}, which compares pictures by feature networks, with latents ({of})"
        yield Problem((*place, "objective", "name"), f"{found}, expected d2o or another one without them")


def _datasets_of_pixels(experiment: Experiment) -> Iterator[tuple[Place, str | None]]:
    """Yield the places where features or pixels of a dataset are read."""
    for name, table in experiment.tables.items():
        yield ("tables", name, "dataset"), table.dataset
        for index, row in enumerate(table.rows):
            yield ("tables", name, "rows", index, "dataset"), row.dataset
    for name, metric in experiment.metrics.items():
        yield ("metrics", name, "held_out"), metric.held_out
    for name, embeddings in experiment.class_embeddings.items():
        yield ("class_embeddings", name, "dataset"), embeddings.dataset
