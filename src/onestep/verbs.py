"""Verbs that belong to no single stage: `resolve`, `status` and `export`."""

from __future__ import annotations

from pathlib import Path


def resolve(*, config: Path, run: str, output: Path) -> int:
    """Write the resolved configuration of a run: every default filled in.

    A published run beside it that is of another configuration moves to the folder `earlier/` there.

    Args:
        config: The config.
        run: Name of the run.
        output: The run.yaml.
    """
    from onestep.config.identity import changes
    from onestep.config.reading import read_experiment, resolved_run
    from onestep.config.run import document_of, dump_run
    from onestep.files import write_text
    from onestep.run_record import read_run_record, set_aside

    resolved, folder = resolved_run(read_experiment(config), run), output.parent
    # Before Snakemake removes what the training will write, and while run.yaml is that of a run of an earlier version.
    published = read_run_record(folder)
    if published is not None and published.config:
        if changed := changes(published.config, document_of(resolved)):
            place = set_aside(folder, published)
            print(f"{run}: {', '.join(changed)}; the published run is now in {place}")
        else:
            published.write(folder)
    write_text(output, dump_run(resolved))
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

    plan, state = Plan.read(config), Path("state")
    classes = {name: components.outline("metrics", metric.name) for name, metric in plan.experiment.metrics.items()}
    lines = status_lines(
        {name: run.images for name, run in plan.experiment.runs.items()},
        codes={name: training_code(plan, name) for name in plan.experiment.runs},
        job_of=lambda run: jobs_of(run, state=state),
        metrics={name: next(iter(metric.values)) for name, metric in classes.items()},
        results=Path("results"),
        state=state,
    )
    for line in lines:
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
