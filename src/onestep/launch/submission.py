"""A run becomes a job of SLURM: batch script by submitit, a clean environment, a copy of the code that is here."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onestep
from onestep.exits import Exit
from onestep.files import replacing, sha256_of_text, write_bytes
from onestep.launch.journal import Job, Journal
from onestep.launch.resources import minutes, resources
from onestep.launch.task import TrainingTask
from onestep.training.assignment import Assignment

# A job gets these from its own site, not from the machine it was submitted on: Snakemake sets the first ones for its
# local jobs, and the temporary folder of a login node is none on a compute node.
_NOT_OURS = (
    *(f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "GOTO", "VECLIB_MAXIMUM")),
    *("TMPDIR", "TMP", "TEMP"),
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PYTHONPATH"),
)


class Refused(ValueError):
    """sbatch did not say that it took a job."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is submitted.

    Attributes:
        run: The run.
        task: What each process of the job calls.
        site: What `launch` of config.yaml says of the run.
    """

    run: str
    task: TrainingTask
    site: Any


def request_for(run: str, *, assignment: Assignment, site: Any) -> Request:
    """Return what is submitted for a run, which `launch` of config.yaml says of it."""
    task = TrainingTask(
        assignment=assignment,
        nodes=site.nodes,
        processes_per_node=site.processes_per_node,
        cpus_per_process=site.cpus_per_process,
        device=site.device,
    )
    return Request(run=run, task=task, site=site)


def job_name(run: str, folder: Path) -> str:
    """Return the name of the jobs of a run: the same for everyone who works in this folder, and for nobody else."""
    return f"onestep-{run}-{sha256_of_text(str(folder.resolve()))[:8]}"


def submit(request: Request, *, journal: Journal, attempt: int) -> Job:
    """Submit a job and write it down.

    Raises:
        Refused: sbatch did not say that it took it; the message has its words. The intention stands: a command that
            timed out may have been heard.
    """
    import submitit

    name = job_name(request.run, journal.folder)
    _keep_code(journal.folder)
    journal.intend(name)
    executor = submitit.SlurmExecutor(folder=logs_of(journal), python=request.site.python)
    executor.update_parameters(**_parameters(request, name=name, folder=journal.folder.resolve()))
    try:
        # submitit prints what sbatch said as well, before it raises.
        with _clean_environment(), contextlib.redirect_stderr(io.StringIO()):
            job_id = executor.submit(_task(request, journal=journal)).job_id
    except submitit.core.utils.FailedJobError as error:
        raise Refused(
            f"sbatch refused the job of {request.run}: {_words(error)}; see `launch` in config.yaml"
        ) from error
    job = _job(job_id, request, name=name, journal=journal, attempt=attempt)
    journal.record(job)
    journal.event("submitted", job=job_id, attempt=attempt)
    return job


def adopt(job_id: str, request: Request, *, journal: Journal) -> Job:
    """Write down a job that was found under the run's name: whoever submitted it did not come to that."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    # Nor, perhaps, to what its processes wait for.
    waited_for = JobPaths(logs_of(journal), job_id=job_id).submitted_pickle
    if not waited_for.exists():
        delayed = DelayedSubmission(_task(request, journal=journal))
        delayed.set_timeout(minutes(request.site.hours), 0)
        with replacing(waited_for) as temporary:
            delayed.dump(temporary)
    job = _job(job_id, request, name=job_name(request.run, journal.folder), journal=journal, attempt=0)
    journal.record(job)
    journal.event("adopted", job=job_id)
    return job


def logs_of(journal: Journal) -> Path:
    """Return the folder of submitit's files: what each rank of each job of a run prints, and what it calls."""
    return journal.folder.resolve() / "submitit"


def log_of(job_id: str, *, journal: Journal) -> Path:
    """Return where rank 0 of a job prints to."""
    return logs_of(journal) / f"{job_id}_0_log.out"


def _task(request: Request, *, journal: Journal) -> TrainingTask:
    """Return what the job's processes call: each of its lives trains what it was submitted for.

    By then the run.yaml of the results may be that of another config.
    """
    folder, assignment = journal.folder.resolve(), request.task.assignment
    kept = folder / "run.yaml"
    if not kept.exists():
        write_bytes(kept, assignment.inputs.run.read_bytes())
    inputs = replace(assignment.inputs, run=kept)
    return replace(request.task, assignment=replace(assignment, inputs=inputs), folder=folder)


def _job(job_id: str, request: Request, *, name: str, journal: Journal, attempt: int) -> Job:
    return Job(
        job_id=job_id,
        name=name,
        submitted_at=time.time(),
        host=socket.gethostname(),
        python=request.site.python or sys.executable,
        attempt=attempt,
        images_seen=journal.images_seen,
        processes=request.site.processes,
    )


def _words(error: Exception) -> str:
    """Return what sbatch said, in one line."""
    lines = [line.rpartition("sbatch:")[2] for line in str(error).splitlines() if "sbatch:" in line]
    return "; ".join(line.strip().removeprefix("error: ") for line in lines) or " ".join(str(error).split())


def _parameters(request: Request, *, name: str, folder: Path) -> dict[str, Any]:
    """Return submitit's parameters of the batch script."""
    site = request.site
    return {
        "job_name": name,
        **resources(site),
        "signal_delay_s": site.signal_seconds,
        "stderr_to_stdout": True,
        "comment": f"onestep train {request.run}",
        # SLURM 22.05 and later do not hand --cpus-per-task on to srun; a rank that dies must take the others along.
        "srun_args": ["--open-mode=append", f"--cpus-per-task={site.cpus_per_process}", "--kill-on-bad-exit=1"],
        "setup": [*_first_lines(folder), *site.setup],
        "teardown": _last_lines(folder, requeues=site.requeues),
        "additional_parameters": {"requeue": True, **site.sbatch},
    }


def _first_lines(folder: Path) -> list[str]:
    """Return the lines that every life of a job begins with."""
    place = shlex.quote(str(folder))
    return [f"export PYTHONPATH={place}/code", f"rm -f {place}/exit_code {place}/stopped.*"]


def _last_lines(folder: Path, *, requeues: int) -> list[str]:
    """Return the lines that a life ends with, on the host: in a container there may be no scontrol.

    A run that was told to leave, and has saved its state, goes back into the queue. Its mark counts beside its exit
    code, because srun gives that of the rank it had to kill. None of it runs after scancel, which ends this script.
    """
    place = shlex.quote(str(folder))
    stopped = f'[ "$code" = {Exit.STOPPED:d} ] || [ -e {place}/stopped.$SLURM_JOB_ID.$life ]'
    return [
        "code=$?",
        "life=${SLURM_RESTART_COUNT:-0}",
        f'echo "$SLURM_JOB_ID $life $code" > {place}/.exit_code && mv {place}/.exit_code {place}/exit_code',
        f"if {stopped} && [ ! -e {place}/done.json ]; then",
        f'\tif [ "$life" -lt {requeues} ]; then',
        '\t\techo "onestep: the state is saved, and the job goes back into the queue"',
        '\t\tscontrol requeue "$SLURM_JOB_ID"',
        "\telse",
        f'\t\techo "onestep: the state is saved; {requeues} times back in the queue are enough"',
        "\tfi",
        "fi",
        'exit "$code"',
    ]


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    """Hide what a job must not inherit; but a site may say by SLURM_CONF where its cluster is."""
    from submitit.helpers import clean_env

    configuration = os.environ.get("SLURM_CONF")
    with clean_env(extra_names=_NOT_OURS):
        if configuration is not None:
            os.environ["SLURM_CONF"] = configuration
        yield


def _keep_code(folder: Path) -> None:
    """Copy the package into the run's folder: the code that began a run is the code that resumes it.

    As long as there is no state to resume from, the code that is here begins it; a bug that kept it from beginning is
    mended by mending it here.
    """
    kept = folder / "code" / "onestep"
    if kept.exists() and any(folder.glob("state-*")):
        return
    fresh = folder / f".code.{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    _copy(Path(onestep.__file__).parent, fresh / "onestep")
    shutil.rmtree(folder / "code", ignore_errors=True)
    fresh.rename(folder / "code")


def _copy(package: Path, target: Path) -> None:
    """Copy the package's files without their permissions: who shares the run's folder may replace them."""
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            copied = target / path.relative_to(package)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
