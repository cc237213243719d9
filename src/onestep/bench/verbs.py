"""The verb `bench train`."""

from __future__ import annotations

from pathlib import Path


def train(
    *,
    config: Path = Path("config.yaml"),
    run: str,
    batch: int | None = None,
    steps: int = 5,
    sets: str | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    output: Path | None = None,
) -> int:
    """Measure the training speed of a run under several option sets, with random weights and data.

    Args:
        config: The config.
        run: Name of the run.
        batch: Batch size; without it the run's.
        steps: Measured steps of each option set.
        sets: Names of option sets, separated by commas; without it all.
        resolution: Image size, where the dataset is not here.
        channels: Image channels, where the dataset is not here.
        classes: Number of classes, where the dataset is not here.
        output: Also write the measurements here (.json).
    """
    from onestep import distributed
    from onestep.bench.option_sets import OPTION_SETS
    from onestep.bench.train import bench_training, report_lines
    from onestep.config.reading import read_experiment
    from onestep.files import write_json

    with distributed.joined() as ranks:
        found = bench_training(
            read_experiment(config),
            run,
            sets=sets.split(",") if sets else OPTION_SETS,
            batch=batch,
            rounds=steps,
            given={"resolution": resolution, "channels": channels, "classes": classes},
            ranks=ranks,
        )
    print("\n".join(report_lines(found)))
    if output is not None:
        write_json(output, found)
    return 0
