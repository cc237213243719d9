"""Submit a run as a SLURM job: batch script by submitit, clean environment, copy of the package's code."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import onestep
from onestep.config.sections import Launch
from onestep.exits import Exit
from onestep.files import replacing, sha256_of_text, write_bytes
from onestep.launch.journal import Job, Journal
from onestep.launch.local import without_ranks
from onestep.launch.resources import resources
from onestep.launch.task import TrainingTask
from onestep.training.assignment import Assignment, Inputs

# Variables that a job must not inherit: Snakemake sets thread counts for its local jobs, the temporary folder of a
# login node may not exist on a compute node, and its GPUs are others. PYTHONPATH is that of the batch script.
_NOT_INHERITED = (
    *(f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "GOTO", "VECLIB_MAXIMUM")),
    *("TMPDIR", "TMP", "TEMP", "PYTHONPATH"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
)


class Refused(ValueError):
    """sbatch did not confirm a submission."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A run to be submitted, and section `launch` of config.yaml for this run."""

    run: str
    assignment: Assignment
    site: Launch
    watch: Mapping[str, Any] = field(default_factory=dict)  # of `onestep.plan.watch.order`
    target: Path | None = None  # where the run is published; shown there while it trains


def job_name(run: str, folder: Path) -> str:
    """Return the SLURM job name of a run: the same for all users of a work folder, different for other folders."""
    return f"onestep-{run}-{sha256_of_text(str(folder.resolve()))[:8]}"


def submit(request: Request, *, journal: Journal, attempt: int) -> Job:
    """Submit a job and record it.

    Raises:
        Refused: sbatch did not confirm the job. The submission mark remains: an sbatch that timed out may still submit.
        ValueError: The run was started by a version of onestep that cannot read this version's task, a program of SLURM
            is missing, or the work folder has a name that SLURM would change.
    """
    import submitit
    from submitit.helpers import clean_env

    site, name, place = request.site, job_name(request.run, journal.folder), shlex.quote(str(journal.folder.resolve()))
    _keep_code(journal.folder)
    _check_site(journal.folder.resolve())
    journal.intend(name, cluster=site.cluster)

    class SlurmExecutor(submitit.SlurmExecutor):
        """Submitit's, for every form of sbatch's answer."""

        @staticmethod
        def _get_job_id_from_submission_command(string: bytes | str) -> str:
            return job_id_of(string if isinstance(string, str) else string.decode(errors="replace"))

    executor = SlurmExecutor(folder=journal.logs, python=site.python)
    executor.update_parameters(
        job_name=name,
        **resources(site),
        signal_delay_s=site.signal_seconds,
        stderr_to_stdout=True,
        comment=f"onestep train {request.run}",
        # SLURM >= 22.05 does not pass --cpus-per-task on to srun. A failed rank must end the others.
        srun_args=["--open-mode=append", f"--cpus-per-task={site.cpus_per_process}", "--kill-on-bad-exit=1"],
        setup=[
            f"export PYTHONPATH={_python_path(journal.folder)}",
            f"rm -f {place}/exit_code {place}/stopped.*",
            *site.setup,
        ],
        teardown=_last_lines(place, requeues=site.requeues),
        additional_parameters={"requeue": True, **site.sbatch},
    )
    # SLURM_CONF locates the cluster.
    kept = {name: value for name, value in os.environ.items() if name == "SLURM_CONF"}
    try:
        # submitit prints sbatch's message before it raises.
        with clean_env(extra_names=_not_inherited()), contextlib.redirect_stderr(io.StringIO()):
            os.environ |= kept
            job_id = executor.submit(_task(request, journal=journal)).job_id
    except submitit.core.utils.FailedJobError as error:
        lines = [line.rpartition("sbatch:")[2].strip() for line in str(error).splitlines() if "sbatch:" in line]
        reason = "; ".join(line.removeprefix("error: ") for line in lines) or " ".join(str(error).split())
        raise Refused(f"sbatch refused the job of {request.run}: {reason}. Fix: `launch` in config.yaml") from error
    job = _recorded(job_id, request, journal=journal, attempt=attempt)
    journal.event("submitted", job=job_id, attempt=attempt)
    return job


def job_id_of(answer: str) -> str:
    """Return the job of sbatch's answer: `Submitted batch job 7`, `7`, or `7;cluster`; Refused if it has none."""
    found = re.search(r"\bjob (\d+)", answer) or re.search(r"^\s*(\d+)\s*(?:;.*)?$", answer, re.MULTILINE)
    if found is None:
        raise Refused(f"sbatch: got the answer {answer.strip()[:200]!r}, expected the id of a job")
    return found[1]


def _check_site(folder: Path) -> None:
    """Raise ValueError if a job cannot be submitted from here."""
    missing = [program for program in ("sbatch", "srun", "squeue") if shutil.which(program) is None]
    if missing:
        fix = "Fix: load the site's SLURM module, or set `launch: {backend: local}`"
        raise ValueError(f"launch.backend: got no {', '.join(missing)} in PATH, expected the programs of SLURM. {fix}")
    # SLURM replaces %j and the like in the names of logs, and reads each line of the batch script for itself.
    if any(letter in "%\\" or not letter.isprintable() for letter in str(folder)):
        fix = "Fix: use another working directory"
        raise ValueError(
            f"{str(folder)!r}: got %, a backslash or a control character in a folder of SLURM's logs. {fix}"
        )


def _not_inherited() -> list[str]:
    return [*_NOT_INHERITED, *(os.environ.keys() - without_ranks(os.environ).keys())]


def _python_path(folder: Path) -> str:
    """Return the PYTHONPATH of a job as a word: the copied code, then what this process finds modules in."""
    own = [str(Path(each).resolve()) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    return shlex.quote(os.pathsep.join([f"{folder.resolve()}/code", *own]))


def adopt(job_id: str, request: Request, *, journal: Journal) -> Job:
    """Record a job submitted by a launcher that died first, and return it."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    # That launcher may also have died before it wrote the file that the job's processes wait for.
    pickled = JobPaths(journal.logs, job_id=job_id).submitted_pickle
    if not pickled.exists():
        delayed = DelayedSubmission(_task(request, journal=journal))
        delayed.set_timeout(resources(request.site)["time"], 0)
        with replacing(pickled) as temporary:
            delayed.dump(temporary)
    job = _recorded(job_id, request, journal=journal, attempt=0)
    journal.event("adopted", job=job_id)
    return job


def _task(request: Request, *, journal: Journal) -> TrainingTask:
    """Return the task with a copy of run.yaml, since the one in results may change while the job waits."""
    folder, assignment, site = journal.folder.resolve(), request.assignment, request.site
    kept, output = keep_config(request, folder=folder), assignment.output
    inputs = replace(assignment.inputs, run=kept)
    return TrainingTask(
        assignment=replace(assignment, inputs=inputs, output=None if output is None else output.resolve()),
        nodes=site.nodes,
        processes_per_node=site.processes_per_node,
        cpus_per_process=site.cpus_per_process,
        device=site.device,
        folder=folder,
        watch=request.watch,
        target=request.target,
    )


def keep_config(request: Request, *, folder: Path) -> Path:
    """Copy run.yaml into the work folder, where a job that waits finds an edit of the length, and return the copy."""
    kept, content = folder / "run.yaml", request.assignment.inputs.run.read_bytes()
    if not kept.exists() or kept.read_bytes() != content:
        write_bytes(kept, content)
    return kept


def _recorded(job_id: str, request: Request, *, journal: Journal, attempt: int) -> Job:
    job = Job(
        job_id=job_id,
        name=job_name(request.run, journal.folder),
        submitted_at=time.time(),
        host=socket.gethostname(),
        python=request.site.python or sys.executable,
        attempt=attempt,
        images_seen=journal.images_seen,
        processes=request.site.processes,
        cluster=journal.cluster.name,
    )
    journal.record(job)
    return job


def _last_lines(place: str, *, requeues: int) -> list[str]:
    """Return the last lines of the batch script: requeue a training that saved its state after a signal.

    They run on the host, but not after scancel. srun returns the code of the rank that it killed, so marks count, too.
    """
    stopped = f'[ "$code" = {Exit.STOPPED:d} ] || [ -e {place}/stopped.$SLURM_JOB_ID.$restarts ]'
    return [
        "code=$?",
        "restarts=${SLURM_RESTART_COUNT:-0}",
        f'echo "$SLURM_JOB_ID $restarts $code" > {place}/.exit_code && mv {place}/.exit_code {place}/exit_code',
        f"if {stopped} && [ ! -e {place}/done.json ]; then",
        f'\tif [ "$restarts" -lt {requeues} ]; then',
        '\t\techo "onestep: state saved; requeueing the job"',
        '\t\tscontrol requeue "$SLURM_JOB_ID"',
        "\telse",
        f'\t\techo "onestep: state saved; no requeue after launch.requeues = {requeues}"',
        "\tfi",
        "fi",
        'exit "$code"',
    ]


def _keep_code(folder: Path) -> None:
    """Copy the package into the work folder, unless there is a state: a run is resumed by the code that started it."""
    kept = folder / "code" / "onestep"
    if kept.exists() and any(folder.glob("state-*")):
        _check_kept_code(kept.parent)
        return
    fresh = folder / f".code.{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    package = Path(onestep.__file__).parent
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copied = fresh / path.relative_to(package.parent)
            copied.parent.mkdir(parents=True, exist_ok=True)
            # Without its permissions, so that others of the run's group can replace it.
            shutil.copyfile(path, copied)
    shutil.rmtree(folder / "code", ignore_errors=True)
    fresh.rename(folder / "code")


def _check_kept_code(code: Path) -> None:
    """Raise ValueError if the copied code lacks a class of a task, or has fields in it that this version lacks."""
    for kind in (TrainingTask, Assignment, Inputs):
        path = code.joinpath(*kind.__module__.split(".")).with_suffix(".py")
        body = ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else []
        classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
        named = {ast.unparse(each.target) for node in classes for each in node.body if isinstance(each, ast.AnnAssign)}
        if not classes or not named <= {each.name for each in fields(kind)}:
            other = "got code of another version of onestep, expected one whose jobs this version can submit"
            fix = f"finish the run with that version, or delete {code} to resume with this one"
            raise ValueError(f"{code}: {other}. Fix: {fix}")
