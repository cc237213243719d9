"""What SLURM does for a run right now, asked by somebody who does not launch it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onestep.launch.cluster import Cluster
from onestep.launch.journal import Journal, journals


@dataclass(frozen=True, kw_only=True)
class JobSeen:
    """A run's newest job.

    Attributes:
        job_id: What SLURM calls it.
        state: What SLURM, or its last launcher, says of it.
        restarts: How often it went back into the queue.
        gpu_hours: Hours it ran, times its processes; None where accounting does not tell.
    """

    job_id: str
    state: str
    restarts: int
    gpu_hours: float | None


def jobs_of(run: str, *, state: Path, cluster: Cluster | None = None) -> JobSeen | None:
    """Return the newest job of a run; None where it never had one.

    Args:
        run: The run.
        state: Root of the work folders.
        cluster: SLURM.
    """
    found = journals(state, run)
    if not found:
        return None
    return _seen(found[-1], cluster or Cluster())


def _seen(journal: Journal, cluster: Cluster) -> JobSeen:
    job = journal.job
    assert job is not None, journal.folder
    sighting, seconds = cluster.look(job.job_id), cluster.run_seconds(job.job_id)
    silent = "SLURM does not answer" if shutil.which("squeue") else "no squeue here"
    forgotten = job.ended or ("finished" if journal.is_done else "SLURM does not know it")
    return JobSeen(
        job_id=job.job_id,
        state=sighting.state or (forgotten if sighting.answered else silent),
        restarts=sighting.restarts or 0,
        gpu_hours=None if seconds is None else seconds * job.processes / 3600,
    )


def cancel_jobs(run: str, *, state: Path, cluster: Cluster | None = None) -> Iterator[str]:
    """Cancel every living job of a run, whatever config it was submitted under; yield a line for each.

    Raises:
        ValueError: SLURM does not answer, or the run never had a job.
    """
    cluster, found = cluster or Cluster(), journals(state, run)
    if not found:
        raise ValueError(f"{state / run}: no job of this run was ever submitted from here")
    any_lived = False
    for journal in found:
        job = journal.job
        assert job is not None, journal.folder
        active = cluster.active_jobs(job.name)
        if active is None:
            raise ValueError(f"squeue does not answer; job {job.job_id} of {run} may be alive: scancel {job.job_id}")
        for job_id in active:
            any_lived = True
            gone = cluster.cancel(job_id)
            journal.event("cancelled", job=job_id, because="onestep cancel")
            yield f"{run}: job {job_id} {'cancelled' if gone else 'asked to end, but still there'}"
    if not any_lived:
        yield f"{run}: no job of it is alive"
