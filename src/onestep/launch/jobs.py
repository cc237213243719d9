"""The newest SLURM job of a run, for its status."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from onestep.launch.cluster import Cluster
from onestep.launch.journal import journals


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
