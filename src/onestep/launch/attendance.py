"""What SLURM does for a run right now, asked by somebody who does not launch it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onestep.launch.cluster import Cluster
from onestep.launch.journal import Job, Journal, journals


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
    """Return the newest job of a run; None where it never had one, as far as is known.

    Args:
        run: The run.
        state: Root of the work folders.
        cluster: SLURM.
    """
    found, cluster = journals(state, run), cluster or Cluster()
    if not found:
        return None
    job = found[-1].job
    return _unrecorded(found[-1], cluster) if job is None else _recorded(job, found[-1], cluster)


def _unrecorded(journal: Journal, cluster: Cluster) -> JobSeen | None:
    """Return the job of a launcher that died between submitting it and writing it down."""
    name = journal.jobs_name
    active = None if name is None else cluster.active_jobs(name)
    if not active:
        return None
    sighting = cluster.look(active[0])
    state = sighting.state or "not written down by its launcher"
    return JobSeen(job_id=active[0], state=state, restarts=sighting.restarts or 0, gpu_hours=None)


def _recorded(job: Job, journal: Journal, cluster: Cluster) -> JobSeen:
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
        name = journal.jobs_name
        active = [] if name is None else cluster.active_jobs(name)
        if active is None:
            raise ValueError(f"squeue does not answer; a job of {run} may be alive: `scancel --name {name}` ends it")
        for job_id in active:
            any_lived = True
            gone = cluster.cancel(job_id)
            journal.event("cancelled", job=job_id, because="onestep cancel")
            yield f"{run}: job {job_id} {'cancelled' if gone else 'asked to end, but still there'}"
    if not any_lived:
        yield f"{run}: no job of it is alive"
