"""Record of a run's SLURM jobs in its work folder, from which another launcher continues."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from onestep.files import read_json, write_json
from onestep.launch.cluster import Cluster


@dataclass(frozen=True, kw_only=True)
class Job:
    """A SLURM job that trains a run."""

    job_id: str
    name: str
    submitted_at: float  # seconds since 1970
    host: str  # of the submission
    python: str  # command that starts the job's processes
    attempt: int  # number of jobs before it since the run last made progress
    images_seen: int  # by the run at submission
    processes: int
    ended: str | None = None  # reason of its end, once a launcher has observed it


class Journal:
    """Files of the launchers in a run's work folder, `state/{run}/{spec}/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._record, self._intention = folder / "job.json", folder / "submitting"
        self._lock, self._log = folder / "launch.lock", folder / "log.jsonl"
        self.streamed = folder / "streamed.json"
        """File with the position up to which the newest job's log was printed."""
        self.logs = folder.resolve() / "submitit"
        """Folder of submitit's files: the log of each rank of each job, and the pickled task."""

    @property
    def is_done(self) -> bool:
        """Whether the training is complete."""
        return (self.folder / "done.json").exists()

    def log_of(self, job_id: str) -> Path:
        """Return the log of rank 0 of a job."""
        return self.logs / f"{job_id}_0_log.out"

    @property
    def job(self) -> Job | None:
        """Job that was submitted last."""
        return Job(**read_json(self._record)) if self._record.exists() else None

    def record(self, job: Job) -> None:
        """Record a submitted job and remove its submission mark."""
        write_json(self._record, asdict(job))
        self._intention.unlink(missing_ok=True)

    def close(self, job: Job, *, because: str) -> None:
        """Record the end of a job; later launchers do not query it again."""
        write_json(self._record, asdict(replace(job, ended=because)))

    @property
    def jobs_name(self) -> str | None:
        """SLURM job name of the run; None if no submission was ever started."""
        try:
            return read_json(self._intention)["name"]
        except FileNotFoundError:
            job = self.job
            return None if job is None else job.name

    @property
    def is_submitting(self) -> bool:
        """Whether a submission was started whose outcome is unknown."""
        return self._intention.exists()

    @property
    def intended_seconds_ago(self) -> float:
        """Age of the submission mark in seconds; an sbatch process can outlive its launcher."""
        return max(0.0, time.time() - _written_at(self._intention))

    def intend(self, name: str) -> None:
        """Mark the start of a submission under a job name, so that a crash leaves a trace."""
        write_json(self._intention, {"name": name, "host": socket.gethostname(), "at": time.time()})

    def give_up_intention(self) -> None:
        """Remove the mark of a submission that made no job."""
        self._intention.unlink(missing_ok=True)

    def ending_of(self, job_id: str) -> tuple[int | None, int | None]:
        """Return requeues before a job's newest start and its exit code; None while its batch script wrote none."""
        path = self.folder / "exit_code"
        found = path.read_text().split() if path.exists() else []
        return (int(found[1]), int(found[2])) if len(found) == 3 and found[0] == job_id else (None, None)

    def stopped(self, job_id: str) -> bool:
        """Return whether the job's newest start saved its state after a signal; the next start removes the mark."""
        return any(self.folder.glob(f"stopped.{job_id}.*"))

    @property
    def images_seen(self) -> int:
        """Images seen according to the run's log."""
        record = self.last_record
        return 0 if record is None else record["images_seen"]

    @property
    def last_record(self) -> dict[str, Any] | None:
        """Last complete record of the run's log."""
        lines = self._log.read_bytes().rpartition(b"\n")[0].splitlines() if self._log.exists() else []
        return json.loads(lines[-1]) if lines else None

    def event(self, what: str, **facts: Any) -> None:
        """Append an event of the run's jobs to events.jsonl."""
        who = {"host": socket.gethostname(), "process": os.getpid()}
        with open(self.folder / "events.jsonl", "a") as file:
            file.write(json.dumps({"at": round(time.time(), 3), "what": what, **facts, **who}) + "\n")

    @contextlib.contextmanager
    def watching(self) -> Iterator[bool]:
        """Yield whether this process holds the lock of the run's only launcher; the kernel frees a killed one's.

        Raises:
            ValueError: The file system has no flock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # A soft lock would survive a killed launcher, so flock is required.
        lock = filelock.FileLock(self._lock, blocking=False, fallback_to_soft=False, on_acquired=_write_owner)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        except OSError as error:
            fix = "Fix: use a file system with it"
            raise ValueError(f"{self._lock}: got {error.strerror}, expected flock. {fix}") from error
        try:
            yield True
        finally:
            lock.release()

    @property
    def watcher(self) -> str:
        """Process and host of the run's launcher."""
        return (self._lock.read_text() if self._lock.exists() else "") or "another process"


def journals(state: Path, run: str) -> list[Journal]:
    """Return the journals of a run under all its configs that have a job or a submission; the newest last."""
    paths = [path for name in ("job.json", "submitting") for path in (state / run).glob(f"*/{name}")]
    newest_first = dict.fromkeys(path.parent for path in sorted(paths, key=_written_at, reverse=True))
    return [Journal(folder) for folder in reversed(newest_first)]


@dataclass(frozen=True, kw_only=True)
class JobSeen:
    """Newest job of a run."""

    job_id: str
    state: str  # SLURM's, else the end recorded by its launcher
    restarts: int
    gpu_hours: float | None  # run time times processes; None without accounting


def jobs_of(run: str, *, state: Path) -> JobSeen | None:
    """Return the newest job of a run with a work folder below `state`; None if none was submitted from there."""
    found, cluster = journals(state, run), Cluster()
    if not found:
        return None
    journal, job = found[-1], found[-1].job
    if job is None:
        # Its launcher died between submission and record.
        active = None if journal.jobs_name is None else cluster.active_jobs(journal.jobs_name)
        if not active:
            return None
        sighting = cluster.look(active[0])
        unknown = sighting.state or "not recorded by its launcher"
        return JobSeen(job_id=active[0], state=unknown, restarts=sighting.restarts or 0, gpu_hours=None)
    sighting, seconds = cluster.look(job.job_id), cluster.run_seconds(job.job_id)
    silent = "SLURM does not answer" if shutil.which("squeue") else "no squeue in PATH"
    forgotten = job.ended or ("finished" if journal.is_done else "no record in SLURM")
    return JobSeen(
        job_id=job.job_id,
        state=sighting.state or (forgotten if sighting.answered else silent),
        restarts=sighting.restarts or 0,
        gpu_hours=None if seconds is None else seconds * job.processes / 3600,
    )


def _write_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _written_at(path: Path) -> float:
    """Return the modification time of a file in seconds since 1970; -inf if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf
