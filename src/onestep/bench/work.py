"""What a run of a config computes for each image, with random weights and without numbers: the file of `Work`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onestep.bench.option_sets import own_options
from onestep.bench.random_run import random_training, random_wrapped
from onestep.config.sections import Experiment
from onestep.data._batches import opened
from onestep.training.nowhere import NOWHERE
from onestep.training.sources import ImageShape
from onestep.training.work import Work, work


def count_work(experiment: Experiment, run: str, *, data: Path) -> dict[str, Any]:
    """Return the record of a run's work on images of an archive, with the processes of section `launch`.

    Raises:
        ValueError: There is no such run, or its teacher's architecture is unknown.
    """
    if run not in experiment.runs:
        raise ValueError(f"run: got {run!r}, expected one of {', '.join(experiment.runs)}")
    archive, block = opened(data, cache=None), experiment.runs[run]
    stated = experiment.datasets[block.dataset].classes
    classes = archive.classes if stated is None else stated
    shape = ImageShape(resolution=archive.resolution, channels=archive.channels, classes=classes)
    chosen = own_options(block).without_devices()

    def build() -> Any:
        training = random_training(experiment, run, options=chosen, shape=shape, batch=None, ranks=NOWHERE)
        return training, random_wrapped(training, options=chosen)

    images = len(archive) if block.subset is None else block.subset.images
    processes = experiment.launch.of(run).processes
    return record_of(run, work(build, images=images, processes=processes, micro_batch=block.micro_batch))


def record_of(run: str, found: Work) -> dict[str, Any]:
    """Return the work of a run as JSON."""
    phases = {
        name: {"every": each.every, "flops_per_image": each.flops, "passes": each.passes, "units": each.units}
        for name, each in found.phases.items()
    }
    return {
        "run": run,
        "batch": found.batch,
        "processes": found.processes,
        "flops_per_image": found.flops,
        "flops_before_the_first_step": found.start,
        "passes_per_image": found.units,
        "phases": phases,
    }


def work_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a report."""
    yield f"{record['run']}, images of a step: {record['batch']}"
    for name, phase in record["phases"].items():
        often = "" if phase["every"] == 1 else f", at each {phase['every']}-th step"
        yield f"  {name}: {phase['flops_per_image'] / 1e9:.4g} GFLOP per image{often}"
        yield "    " + ", ".join(f"{key} {count:.3g}" for key, count in phase["passes"].items())
    units = ", ".join(f"{kind} {count:.3g}" for kind, count in record["passes_per_image"].items())
    yield f"  in all: {record['flops_per_image'] / 1e9:.4g} GFLOP per image; forward passes or as much: {units}"
    if record["flops_before_the_first_step"]:
        yield f"  before the first step: {record['flops_before_the_first_step'] / 1e9:.4g} GFLOP"
