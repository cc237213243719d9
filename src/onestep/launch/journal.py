"""Record of a run's SLURM jobs and of their logs in its work folder, from which another launcher continues."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onestep.files import Lock, read_json, write_json, write_text
from onestep.launch.cluster import Cluster
from onestep.training.publication import images_done

_MOST_BYTES = 1 << 20
_LAST_LINES = 40
_READS, _READ_SECONDS = 50, 0.02


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
    cluster: str | None = None  # another SLURM cluster than that of the launcher's machine
    ended: str | None = None  # reason of its end, once a launcher has observed it


class Journal:
    """Files of the launchers in a run's work folder, `state/{run}/{spec}/`; `images` is the length that is wanted."""

    def __init__(self, folder: Path, *, images: int = 0) -> None:
        self.folder, self._images = folder, images
        self._record, self._intention, self._lock = folder / "job.json", folder / "submitting", folder / "launch.lock"
        self._streamed = folder / "streamed.json"  # position up to which the newest job's log was printed
        self.logs = folder.resolve() / "submitit"  # logs of each rank of each job, and the pickled task

    @property
    def is_done(self) -> bool:
        """Whether the training is complete; one that is damaged is examined when it is published."""
        if not (self.folder / "done.json").exists():
            return False
        seen = images_done(self.folder)
        return seen is None or seen >= self._images

    @property
    def is_shorter(self) -> bool:
        """Whether a training of fewer images than wanted is complete."""
        return not self.is_done and images_done(self.folder) is not None

    def log_of(self, job_id: str) -> Path:
        """Return the log of rank 0 of a job."""
        return self.logs / f"{job_id}_0_log.out"

    @property
    def job(self) -> Job | None:
        """Job that was submitted last."""
        return Job(**read_json(self._record)) if self._record.exists() else None

    def record(self, job: Job) -> None:
        """Record a job and remove the submission mark."""
        write_json(self._record, asdict(job))
        self.give_up_intention()

    @property
    def jobs_name(self) -> str | None:
        """SLURM job name of the run; None if no submission was ever started."""
        return None if (newest := self._newest) is None else newest["name"]

    @property
    def is_submitting(self) -> bool:
        """Whether a submission was started whose outcome is unknown."""
        return self._intention.exists()

    @property
    def intended_seconds_ago(self) -> float:
        """Age of the submission mark in seconds; an sbatch process can outlive its launcher."""
        return max(0.0, time.time() - _written_at(self._intention))

    @property
    def cluster(self) -> Cluster:
        """SLURM of the newest submission."""
        return Cluster(name=(self._newest or {}).get("cluster"))

    @property
    def _newest(self) -> dict[str, Any] | None:
        """Mark or record of the newest submission."""
        try:
            mark: dict[str, Any] = read_json(self._intention)
            return mark
        except FileNotFoundError:
            return None if (job := self.job) is None else asdict(job)

    def intend(self, name: str, *, cluster: str | None) -> None:
        """Mark the start of a submission to a cluster under a job name, so that a crash leaves a trace."""
        mark = {"name": name, "cluster": cluster, "host": socket.gethostname(), "at": time.time()}
        write_json(self._intention, mark)

    def give_up_intention(self) -> None:
        """Remove the submission mark."""
        self._intention.unlink(missing_ok=True)

    def ending_of(self, job_id: str) -> tuple[int | None, int | None]:
        """Return requeues before a job's newest start and its exit code; None while its batch script wrote none."""
        path = self.folder / "exit_code"
        found = path.read_text(encoding="utf-8").split() if path.exists() else []
        return (int(found[1]), int(found[2])) if len(found) == 3 and found[0] == job_id else (None, None)

    def stopped(self, job_id: str) -> bool:
        """Return whether the job's newest start saved its state after a signal; the next start removes the mark."""
        return any(self.folder.glob(f"stopped.{job_id}.*"))

    @property
    def last_record(self) -> dict[str, Any] | None:
        """Last complete record of the run's log."""
        log = self.folder / "log.jsonl"
        lines = log.read_bytes().rpartition(b"\n")[0].splitlines() if log.exists() else []
        return json.loads(lines[-1]) if lines else None

    @property
    def images_seen(self) -> int:
        """Images seen according to the run's log."""
        return (self.last_record or {"images_seen": 0})["images_seen"]

    def event(self, what: str, **facts: Any) -> None:
        """Append an event of the run's jobs to events.jsonl."""
        who = {"host": socket.gethostname(), "process": os.getpid()}
        with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"at": round(time.time(), 3), "what": what, **facts, **who}) + "\n")

    @contextlib.contextmanager
    def watching(self) -> Iterator[bool]:
        """Yield whether this process holds the lock of the run's only launcher; ValueError without flock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(self._lock)
        if not lock.acquire():
            yield False
            return
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield True
        finally:
            lock.release()

    @property
    def watcher(self) -> str:
        """Process and host of the run's launcher, which writes them when it has taken the lock."""
        for _ in range(_READS):
            if self._lock.exists() and (found := self._lock.read_text(encoding="utf-8")):
                return found
            time.sleep(_READ_SECONDS)
        return "another process"

    def tail(self, job_id: str) -> Iterator[list[str]]:
        """Yield at each step the complete lines that rank 0 of a job added to its log, each to one launcher only."""
        log = self.log_of(job_id)
        printed = self._printed(log)
        while True:
            content = b""
            with contextlib.suppress(OSError), open(log, "rb") as file:
                file.seek(printed)
                content = file.read(_MOST_BYTES)
            complete = content[: content.rfind(b"\n") + 1]
            if complete:
                # Store the position first: a kill in between omits lines (the log keeps them) but repeats none.
                printed += len(complete)
                write_text(self._streamed, json.dumps({"log": log.name, "bytes": printed}))
            yield complete.decode(errors="replace").splitlines()

    def _printed(self, log: Path) -> int:
        """Return the bytes of a log that were printed, as far as it is that of the newest job."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._streamed.read_text(encoding="utf-8"))
            return found["bytes"] if found["log"] == log.name else 0
        return 0

    def restore(self, log: Path) -> None:
        """Append to a rule's log the lines that earlier launchers printed: Snakemake empties logs at each start."""
        existing = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        logs = sorted(self.logs.glob("*_0_log.out"), key=_written_at)
        lines = []
        for path in logs:
            mark = f"[{path.name.partition('_')[0]}] "
            if mark not in existing:
                # All lines were printed, except of the newest job.
                content = path.read_bytes()[: self._printed(path) if path == logs[-1] else None]
                lines += [f"{mark}{line}\n" for line in content.decode(errors="replace").splitlines()]
        if lines:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a", encoding="utf-8") as file:
                file.writelines(lines)

    def failure(self, job_id: str) -> tuple[list[str], str | None]:
        """Return the last lines of the logs of two ranks with an error, else of rank 0; and the first `error: ...`."""
        paths = sorted(self.logs.glob(f"{job_id}_*_log.out"), key=lambda path: int(path.name.split("_")[1]))
        logs = {path: path.read_text(encoding="utf-8", errors="replace") for path in paths}
        failed = [path for path, text in logs.items() if "Traceback" in text or "error:" in text]
        last = {path: text.splitlines()[-_LAST_LINES:] for path, text in logs.items()}
        shown = [line for path in failed[:2] or paths[:1] for line in (f"--- {path}, its last lines:", *last[path])]
        errors = [line.removeprefix("error: ") for path in paths for line in last[path] if line.startswith("error: ")]
        return shown, errors[0] if errors else None


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


def job_in(journal: Journal) -> JobSeen | None:
    """Return the newest job of one work folder; None if none was submitted from there."""
    if (name := journal.jobs_name) is None:
        return None
    cluster = journal.cluster
    job, unseen = journal.job, "not recorded by its launcher"
    hours: float | None = None
    # Without a record, its launcher died between submission and record.
    active = (cluster.active_jobs(name) or []) if job is None else [job.job_id]
    if not active:
        return None
    sighting = cluster.look(active[0])
    if job is not None:
        silent = "SLURM does not answer" if shutil.which("squeue") else "no squeue in PATH"
        forgotten = job.ended or ("finished" if journal.is_done else "no record in SLURM")
        unseen, seconds = forgotten if sighting.answered else silent, cluster.run_seconds(job.job_id)
        hours = None if seconds is None else seconds * job.processes / 3600
    restarts = sighting.restarts or 0
    return JobSeen(job_id=active[0], state=sighting.state or unseen, restarts=restarts, gpu_hours=hours)


def _written_at(path: Path) -> float:
    """Return the modification time of a file in seconds since 1970; -inf if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf
