"""Verbs that belong to no single stage: `resolve`, `status` and `export`."""

from __future__ import annotations

from pathlib import Path


def resolve(*, config: Path, run: str, output: Path) -> int:
    """Write the resolved configuration of a run: every default filled in.

    Args:
        config: The config.
        run: Name of the run.
        output: The run.yaml.
    """
    import yaml

    from onestep.config.reading import read_experiment, run_document
    from onestep.files import write_text

    document = run_document(read_experiment(config), run)
    write_text(output, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    return 0


def status(*, config: Path = Path("config.yaml")) -> int:
    """Print for each run its progress, its SLURM job, and whether its training code has changed since.

    Args:
        config: The config.
    """
    from onestep import components
    from onestep.launch.journal import jobs_of
    from onestep.plan import Plan
    from onestep.plan.train import training_code
    from onestep.status import status_lines

    plan = Plan.read(config)
    classes = {name: components.outline("metrics", metric.name) for name, metric in plan.experiment.metrics.items()}
    runs = {name: run.images for name, run in plan.experiment.runs.items()}
    for line in status_lines(
        runs,
        codes={name: training_code(plan, name) for name in runs},
        job_of=lambda run: jobs_of(run, state=Path("state")),
        metrics={name: next(iter(metric.values)) for name, metric in classes.items()},
        results=Path("results"),
        state=Path("state"),
    ):
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
