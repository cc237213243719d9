"""The verbs `launch`, `cancel` and `doctor`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from onestep.config.sections import Launch
from onestep.launch.cluster import Cluster
from onestep.launch.journal import Journal, journals


def launch(
    *,
    config: Path = Path("config.yaml"),
    run: Path,
    data: Path,
    teacher: Path | None = None,
    backbone: Mapping[str, Path] | None = None,
    class_embeddings: Path | None = None,
    init: Path | None = None,
    codec: Path | None = None,
    pairs: Sequence[Path] = (),
    state: Path,
    output: Path,
    code_in_spec: bool = False,
    micro_batch: int | None = None,
    cache: Path | None = None,
    log: Path | None = None,
) -> int:
    """Train and publish a run by section `launch` of config.yaml: locally, or as a SLURM job that is found again.

    Args:
        config: The config; its section `launch` is used.
        run: Resolved configuration of the run (run.yaml).
        data: Dataset archive (.zip).
        teacher: Weights of the teacher.
        backbone: Weights of the discriminator's backbones by name.
        class_embeddings: Initial class embeddings of the discriminator.
        init: Weights that the run's `init` names; not the verb `init`, which writes a config.
        codec: Network of the run's codec, as `onestep convert` writes it.
        pairs: Images of the run's `pairs`, one file for each block of seeds, in its order.
        state: Folder of training states; the run uses `{state}/{run}/{run hash}/`.
        output: Folder of published runs.
        code_in_spec: Include the code fingerprint in the run hash: changed code trains again.
        micro_batch: The run's `micro_batch`, for this start only and not part of the run hash; without it the run's.
        cache: Folder of decoded images that exceed the memory; without it `{state}/.cache`.
        log: File that the job's output is copied to.
    """
    options = {name: value for name, value in locals().items() if name not in ("config", "log")}
    import yaml

    from onestep.config.reading import read_experiment
    from onestep.fingerprint import Fingerprints
    from onestep.launch.local import without_ranks
    from onestep.plan import Plan
    from onestep.plan.watch import order

    # Of another launcher; the ranks of a run are those of config.yaml.
    for variable in os.environ.keys() - without_ranks(os.environ).keys():
        del os.environ[variable]
    name = yaml.safe_load(run.read_text(encoding="utf-8"))["run"]
    experiment = read_experiment(config)
    site, discard = experiment.launch.of(name), experiment.storage.states == "none"
    is_local = site.backend == "local" or (site.backend == "auto" and shutil.which("sbatch") is None)
    fingerprints = Fingerprints()
    plan = Plan(experiment=experiment, source=str(config), fingerprints=fingerprints)
    watch = order(plan, name) if name in experiment.runs else {}
    memory = _gpu_memory(site, is_local=is_local)
    if memory is not None and name in experiment.runs:
        from onestep.bench.estimate import refuse_hopeless

        folder = state / ".estimates"
        refuse_hopeless(
            experiment, name, processes=site.processes, micro_batch=micro_batch, memory=memory, folder=folder
        )
    if is_local:
        from onestep.training.verbs import train

        seconds, processes = site.state_seconds, site.processes
        return train(**options, processes=processes, state_seconds=seconds, discard_state=discard, watch=watch)
    from onestep.launch.launcher import launch as launch_job
    from onestep.launch.submission import Request
    from onestep.training.assignment import Assignment, Inputs

    assignment = Assignment(
        inputs=Inputs(
            run=run,
            data=data,
            teacher=teacher,
            backbones=backbone or {},
            class_embeddings=class_embeddings,
            init=init,
            codec=codec,
            pairs=tuple(pairs),
        ),
        state=state,
        code_in_spec=code_in_spec,
        state_seconds=site.state_seconds,
        micro_batch=micro_batch,
        cache=cache,
        keep_state=not discard,
        output=output,
    )
    document = assignment.document()
    folder = assignment.folder(fingerprints.of_training(document))
    request = Request(run=name, assignment=assignment, site=site, watch=watch, target=(output / name).absolute())
    journal = Journal(folder, images=document.get("images", 0))
    return launch_job(request, journal=journal, target=output / name, log=log)


def _gpu_memory(site: Launch, *, is_local: bool) -> int | None:
    """Return the bytes of a training's GPU, as far as they are known; None for a training on CPUs."""
    from onestep.bench.estimate import gpu_memory

    if site.device == "cpu":
        return None
    if site.gpu_memory_gib is not None:
        return site.gpu_memory_gib << 30
    return gpu_memory() if is_local else None


def cancel(run: str, /, *, state: Path = Path("state")) -> int:
    """Cancel the SLURM jobs that train a run; saved states remain.

    Args:
        run: Name of the run.
        state: Folder of training states.
    """
    found, any_active = journals(state, run), False
    if not found:
        raise ValueError(f"{state / run}: found no record of a job, expected one of {run}. Fix: check the run's name")
    for journal in found:
        name, cluster = journal.jobs_name, journal.cluster
        active = cluster.active_jobs(name) if name else []
        if active is None:
            raise ValueError(f"squeue does not answer; a job of {run} may be active. Fix: `scancel --name {name}`")
        for job_id in active:
            any_active = True
            gone = cluster.cancel(job_id)
            journal.event("cancelled", job=job_id, because="onestep cancel")
            print(f"{run}: job {job_id} {'cancelled' if gone else 'received scancel, but is still active'}")
    if not any_active:
        print(f"{run}: no active job")
    return 0


def doctor(*, config: Path | None = None, gpu_gib: float | None = None) -> int:
    """Check whether this site is ready for the runs of config.yaml; the exit code is 1 if something will fail.

    Args:
        config: The config; without it config.yaml, and the site alone if there is none.
        gpu_gib: Memory of a GPU that the runs have to fit, in GiB; without it `launch.gpu_memory_gib`, or that of this
            machine's GPU. An estimate takes some seconds a run, and is kept in state/.estimates.
    """
    from onestep.launch.doctor import Mark, examine, profile_lines

    path = config or Path("config.yaml")
    found = []
    with contextlib.chdir(path.parent):
        named = Path(path.name) if config or path.exists() else None
        for finding in examine(named, state=Path("state"), cluster=Cluster(), gpu_gib=gpu_gib):
            print(finding.line(), flush=True)
            found.append(finding)
    for line in profile_lines(found):
        print(line)
    return int(any(each.mark is Mark.BAD for each in found))
