"""Verbs that belong to no single stage: `resolve`, `status`, `sample` and `export`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal


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


def status(*, config: Path = Path("config.yaml"), watch: Sequence[float] | None = None) -> int:
    """Print for each run of a config its state, progress, rate, last losses, newest number, SLURM job and cost.

    Args:
        config: The config; its results and states are in its folder, or in the working directory.
        watch: Print again every so many seconds, 5 without a number, until all runs are finished; Ctrl-C leaves.
    """
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


def sample(
    weights: Path,
    output: Path,
    *,
    seeds: range = range(16),
    class_: str | None = None,
    sampler: Mapping[str, Any] | None = None,
    model: str | None = None,
    sampler_name: str | None = None,
    batch: int = 256,
    grid: Path | None = None,
    codec: Path | None = None,
) -> int:
    """Generate one image per seed, as a picture of all, a folder of pictures, or an array.

    With --model the images are those that the pipeline measures: their bytes depend on the seed alone, at the price of
    64 computed rows for each call of the network.

    Examples:
      onestep sample digits_d2o samples.png
      onestep sample digits_d2o@20000 samples.png --seeds 0-63
      onestep sample generator.safetensors threes/ --class 3
      onestep sample results/teachers/digits.safetensors teacher.npz --sampler heun18

    Args:
        weights: A .safetensors file, a run (its newest snapshot), `RUN@IMAGES`, a teacher, or one of their folders.
        output: `.png` (a grid), `.npz` (uint8 [N, H, W, C]), or a new folder (one PNG per seed).
        seeds: First and last seed, as `0-15`.
        class_: Number or name of the class of all images; by default each seed draws its own.
        sampler: By name, as `one_step` or `heun18`, or as in config.yaml (JSON); by default one step for a one-step
            generator, else 18 steps of Heun.
        model: Of the pipeline: name of the model, recorded in the output; needed to measure the images.
        sampler_name: Of the pipeline: name of the sampler in config.yaml, recorded likewise.
        batch: Of the pipeline: images per batch.
        grid: Of the pipeline: also write the first images here (.npz).
        codec: Autoencoder that decodes the images of a network on latents, as `onestep convert` writes it or a folder
            of diffusers; by default the one in `results/`.
    """
    if model is None and sampler_name is None and grid is None:
        from onestep.drawing import write_images

        print(write_images(weights, output, seeds=seeds, chosen=class_, sampler=sampler, codec=codec))
        return 0
    from onestep import gpus
    from onestep.sampling._job import write_samples
    from onestep.sampling._options import sampling_job

    if class_ is not None or sampler is None or output.suffix != ".npz":
        given = " ".join(filter(None, ["--class" * (class_ is not None), str(output)]))
        expected = "expected --sampler and an .npz, and no --class"
        raise ValueError(
            f"sample with --model, --sampler-name or --grid: got {given}, {expected}. Fix: omit those options"
        )
    with gpus.own():
        job = sampling_job(
            weights,
            sampler=sampler,
            seeds=seeds,
            model=model,
            sampler_name=sampler_name,
            batch=batch,
            output=output,
            codec=codec,
        )
        write_samples(job, output=output, grid=grid)
    return 0


def export(
    weights: Path,
    output: Path,
    *,
    format: Literal["onestep", "edm", "diffusers"] = "onestep",
    run: Path | None = None,
    table: Path | None = None,
    licence: str | None = None,
) -> int:
    """Write a one-step generator for publication: weights, a model card and a picture of samples.

    Examples:
      onestep export digits_d2o exported
      onestep export results/selections/d2o@best-fid.frechet-one_step-0-49999.safetensors exported --licence cc-by-4.0
      hf upload OWNER/NAME exported

    Args:
        weights: A snapshot or selected snapshot (.safetensors), a run (its newest snapshot), or `RUN@IMAGES`.
        output: Folder of the files.
        format: `onestep`, or `diffusers` for one-step generators of the networks unet2d and dit; others are refused,
            for the reasons in docs/checkpoints.md.
        run: Folder of its run; by default the one that the snapshot is in.
        table: A table (.json) with its numbers for the card.
        licence: Licence of the weights, such as `cc-by-4.0`; by default the one that follows from the licences of the
            dataset and of the teacher's source.
    """
    from onestep.export import export as write_export

    print(write_export(weights, run=run, table=table, licence=licence, layout=format, folder=output))
    return 0
