"""The verbs `bench train`, `bench launches` and `bench work`."""

from __future__ import annotations

from pathlib import Path


def train(
    *,
    config: Path = Path("config.yaml"),
    run: str,
    batch: int | None = None,
    micro_batch: int | None = None,
    steps: int = 5,
    sets: str | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    output: Path | None = None,
    record: Path | None = None,
) -> int:
    """Measure the training speed of a run under several option sets, with random weights and data.

    Args:
        config: The config.
        run: Name of the run.
        batch: Batch size; without it the run's.
        micro_batch: Most images that pass through the networks at once; without it as many as by an estimate fit.
        steps: Measured steps of each option set.
        sets: Names of option sets, separated by commas; without it all.
        resolution: Image size, where the dataset is not here.
        channels: Image channels, where the dataset is not here.
        classes: Number of classes, where the dataset is not here.
        output: Also write the measurements here (.json).
        record: Also write a record into this folder, as those in docs/records.
    """
    from onestep import distributed
    from onestep.bench.option_sets import OPTION_SETS
    from onestep.bench.recording import Stopwatch
    from onestep.bench.train import bench_training, report_lines, write_bench_record
    from onestep.config.reading import read_experiment
    from onestep.files import write_json

    watch = Stopwatch()
    with distributed.joined() as ranks:
        found = bench_training(
            read_experiment(config),
            run,
            sets=sets.split(",") if sets else OPTION_SETS,
            batch=batch,
            micro_batch=micro_batch,
            rounds=steps,
            given={"resolution": resolution, "channels": channels, "classes": classes},
            ranks=ranks,
        )
    print("\n".join(report_lines(found)))
    if output is not None:
        write_json(output, found)
    if record is not None:
        print(write_bench_record(record, found, took=watch.read()))
    return 0


def launches(
    *,
    config: Path = Path("config.yaml"),
    run: str,
    batch: int | None = None,
    sets: str = "ours,cuda_graphs,fast",
    resolution: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    output: Path | None = None,
    record: Path | None = None,
) -> int:
    """Count the kernels that a training step starts on a GPU under several option sets, without a GPU.

    Args:
        config: The config.
        run: Name of the run.
        batch: Batch size of one GPU; without it the run's.
        sets: Names of option sets, separated by commas; ratios are relative to the first.
        resolution: Image size, where the dataset is not here.
        channels: Image channels, where the dataset is not here.
        classes: Number of classes, where the dataset is not here.
        output: Also write the counts here (.json).
        record: Also write a record into this folder, as those in docs/records.
    """
    from onestep.bench.launches import bench_launches, report_lines, write_launches_record
    from onestep.bench.option_sets import option_set
    from onestep.bench.random_run import shape_of
    from onestep.bench.recording import Stopwatch
    from onestep.config.reading import read_experiment
    from onestep.files import write_json

    watch, experiment = Stopwatch(), read_experiment(config)
    if run not in experiment.runs:
        raise ValueError(f"run: got {run!r}, expected one of {', '.join(experiment.runs)}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch: got {batch}, expected a positive number")
    found = bench_launches(
        experiment,
        run,
        sets=[option_set(name) for name in sets.split(",")],
        shape=shape_of(experiment, run, given={"resolution": resolution, "channels": channels, "classes": classes}),
        batch=batch or experiment.runs[run].batch,
    )
    print("\n".join(report_lines(found)))
    if output is not None:
        write_json(output, found)
    if record is not None:
        print(write_launches_record(record, found, took=watch.read()))
    return 0


def work(*, config: Path = Path("config.yaml"), run: str, data: Path, output: Path | None = None) -> int:
    """Count what a run computes for each image, without its weights: floating-point operations and network passes.

    Args:
        config: The config.
        run: Name of the run.
        data: The run's dataset archive, for the shape and number of its images.
        output: Also write the counts here (.json).
    """
    from onestep.bench.work import count_work, work_lines
    from onestep.config.reading import read_experiment
    from onestep.files import write_json

    found = count_work(read_experiment(config), run, data=data)
    print("\n".join(work_lines(found)))
    if output is not None:
        write_json(output, found)
    return 0
