"""What a launcher remembers of a run's jobs, in the run's own work folder: enough for another launcher to go on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onestep.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of SLURM that trains a run.

    Attributes:
        job_id: What SLURM calls it.
        name: The name it was submitted under.
        submitted_at: Seconds since 1970.
        host: Where it was submitted.
        python: The command that starts its processes.
        attempt: How many jobs went before it without the run getting on.
        images_seen: How far the run was when it was submitted.
        processes: Processes of the job.
        ended: How it ended, where a launcher has seen and said it.
    """

    job_id: str
    name: str
    submitted_at: float
    host: str
    python: str
    attempt: int
    images_seen: int
    processes: int
    ended: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one life of a job ended, as its batch script wrote it down.

    Attributes:
        restarts: Lives before that one.
        code: Exit code of its processes.
    """

    restarts: int
    code: int


class Journal:
    """The files of launchers in a run's work folder, `state/{run}/{spec}/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_done(self) -> bool:
        """Whether the training reached its end."""
        return (self.folder / "done.json").exists()

    @property
    def streamed(self) -> Path:
        """File that says how far the newest job's log was passed on."""
        return self.folder / "streamed.json"

    @property
    def job(self) -> Job | None:
        """The job that was submitted last."""
        return Job(**read_json(self._record)) if self._record.exists() else None

    def record(self, job: Job) -> None:
        """Remember a job; the intention that led to it is carried out."""
        write_json(self._record, asdict(job))
        self._intention.unlink(missing_ok=True)

    def close(self, job: Job, *, because: str) -> None:
        """Remember how a job ended: nobody need look for it again."""
        write_json(self._record, asdict(replace(job, ended=because)))

    @property
    def _record(self) -> Path:
        return self.folder / "job.json"

    @property
    def _intention(self) -> Path:
        return self.folder / "submitting"

    @property
    def jobs_name(self) -> str | None:
        """The name that the run's jobs are submitted under; None where none ever was, nor was about to be."""
        try:
            return read_json(self._intention)["name"]
        except FileNotFoundError:
            job = self.job
            return None if job is None else job.name

    @property
    def touched_at(self) -> float:
        """When a launcher last wrote something of a job here, in seconds since 1970."""
        return max(map(_written_at, (self._record, self._intention)))

    @property
    def is_submitting(self) -> bool:
        """Whether a launcher was about to submit a job, and nobody knows whether it did."""
        return self._intention.exists()

    @property
    def intended_seconds_ago(self) -> float:
        """How long ago that was: what submits can outlive the launcher that called it."""
        return max(0.0, time.time() - _written_at(self._intention))

    def intend(self, name: str) -> None:
        """Say that a job is about to be submitted under `name`: a crash from here on leaves a trace."""
        write_json(self._intention, {"name": name, "host": socket.gethostname(), "at": time.time()})

    def give_up_intention(self) -> None:
        """Say that no job was submitted after all."""
        self._intention.unlink(missing_ok=True)

    def ending_of(self, job_id: str) -> Ending | None:
        """Return how the last life of a job ended; None while it lives, and where nothing was written down."""
        path = self.folder / "exit_code"
        found = path.read_text().split() if path.exists() else []
        if len(found) != 3 or found[0] != job_id:
            return None
        return Ending(restarts=int(found[1]), code=int(found[2]))

    def stopped(self, job_id: str) -> bool:
        """Whether the last life of a job was told to leave, and left its state behind; a new one clears the mark."""
        return any(self.folder.glob(f"stopped.{job_id}.*"))

    @property
    def images_seen(self) -> int:
        """How far the run is, after its log."""
        record = self.last_record
        return 0 if record is None else record["images_seen"]

    @property
    def last_record(self) -> dict[str, Any] | None:
        """The last whole record of the run's log."""
        path = self.folder / "log.jsonl"
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
        return json.loads(lines[-1]) if lines else None

    def event(self, what: str, **facts: Any) -> None:
        """Append a line to events.jsonl: what was done to the run's jobs, and when."""
        line = {
            "at": round(time.time(), 3),
            "what": what,
            **facts,
            "host": socket.gethostname(),
            "process": os.getpid(),
        }
        with open(self.folder / "events.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def watching(self) -> Iterator[bool]:
        """Yield whether this process now is the one launcher of the run; the claim of a killed one frees itself.

        The lock is that of an open file, which network file systems know, too.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "launch.lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield True

    @property
    def watcher(self) -> str:
        """Who watches the run, in words."""
        path = self.folder / "launch.lock"
        return (path.read_text() if path.exists() else "") or "another process"


def journals(state: Path, run: str) -> list[Journal]:
    """Return the journals of a run under all configs it had that left a job, or may have; the newest job last."""
    folders = {path.parent for name in ("job.json", "submitting") for path in (state / run).glob(f"*/{name}")}
    return sorted(map(Journal, folders), key=lambda journal: journal.touched_at)


def _written_at(path: Path) -> float:
    """Return when a file was written, in seconds since 1970; before everything where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf
