"""Verbs that belong to no single stage: `resolve`, `status` and `export`."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path


def resolve(*, config: Path, run: str, output: Path) -> int:
    """Write the resolved configuration of a run: every default filled in.

    Args:
        config: The config.
        run: Name of the run.
        output: The run.yaml.
    """
    from onestep.config.reading import read_experiment, resolved_run
    from onestep.config.run import dump_run
    from onestep.files import write_text

    write_text(output, dump_run(resolved_run(read_experiment(config), run)))
    return 0


def status(*, config: Path = Path("config.yaml"), watch: Sequence[float] | None = None) -> int:
    """Print for each run of a config its state, progress, rate, last losses, newest number, SLURM job and cost.

    Args:
        config: The config; its results and states are in its folder, or in the working directory.
        watch: Print again every so many seconds, 5 without a number, until all runs are finished; Ctrl-C leaves.
    """
    # As on a login node: a config is checked without these, which take seconds to import.
    for module in ("torch", "timm", "torchvision"):
        sys.modules.setdefault(module, None)  # type: ignore[arg-type]
    from onestep import components
    from onestep.launch.journal import job_in
    from onestep.plan import Plan
    from onestep.status import lines_of, repeated, statuses

    folder = config.parent
    if not any((folder / name).exists() for name in ("results", "state")) and Path("results").exists():
        folder, name = Path(), str(config)
    else:
        name = config.name
    seconds = None if watch is None else max(0.2, *watch, 0.2) if watch else 5.0
    with contextlib.chdir(folder):
        plan = Plan.read(name)
        classes = {name: components.outline("metrics", each.name) for name, each in plan.experiment.metrics.items()}
        values = {name: next(iter(metric.values)) for name, metric in classes.items()}
        find = functools.partial(statuses, plan, state=Path("state"), job_of=job_in, values=values)
        if seconds is not None:
            repeated(find, seconds=seconds)
        else:
            for line in lines_of(find()):
                print(line)
    return 0


def export(
    *, weights: Path, run: Path, table: Path | None = None, licence: str = "cc-by-nc-sa-4.0", output: Path
) -> int:
    """Write a generator for publication: one self-contained file of weights and a model card.

    Args:
        weights: A snapshot, or a selected one (.safetensors).
        run: Folder of its run.
        table: A table (.json) with its numbers for the card.
        licence: Licence of the weights; the default is that of EDM's networks, which fine-tuned ones inherit.
        output: Folder of the files.
    """
    from onestep.export import export as write_export

    write_export(weights, run=run, table=table, licence=licence, folder=output)
    print(f"{output}: generator.safetensors, README.md")
    return 0
