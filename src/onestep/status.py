"""How far each run is, which job trains it, and whether the code that trained it is the code that is here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from onestep.files import read_json


class Job(Protocol):
    """What is known of a run's newest job of SLURM."""

    job_id: str
    state: str
    restarts: int
    gpu_hours: float | None


def status_lines(
    runs: Mapping[str, int],
    *,
    codes: Mapping[str, str],
    job_of: Callable[[str], Job | None],
    distances: Sequence[str],
    results: Path,
    state: Path,
) -> Iterator[str]:
    """Yield one line a run.

    Args:
        runs: How many images each run is to see.
        codes: Fingerprint of each run's training code as it is here now.
        job_of: Returns a run's newest job, None where it has none; not asked of a run that is published.
        distances: The metrics that are Frechet distances; the newest number of the first that was measured is shown.
        results: The results folder.
        state: Root of the work folders.
    """
    width = max(map(len, runs), default=0)
    for run, images in runs.items():
        summary = results / "runs" / run / "summary.json"
        published = summary.exists()
        said = [_finished(summary, code=codes[run]) if published else _under_way(state / run, images=images)]
        said += [_distance(results / "metrics", run, distances), "" if published else _job(job_of(run))]
        yield f"{run:<{width}}  {'; '.join(each for each in said if each)}"


def _finished(summary: Path, *, code: str) -> str:
    facts = read_json(summary)
    hours = facts["seconds"] * facts["world_size"] / 3600
    device = "CPU process" if facts["device"].startswith("CPU") else "GPU"
    restarts = f", restarted {facts['restarts']} times" if facts["restarts"] else ""
    mark = "" if facts["codes"] == [code] else "; trained with other code than is here now"
    return f"finished, {facts['images_seen']:,} images, {hours:.2f} {device} hours{restarts}{mark}"


def _under_way(folder: Path, *, images: int) -> str:
    """Return what the newest log of a run that is not published says."""
    logs = sorted(folder.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_bytes().rpartition(b"\n")[0].splitlines() if logs else []
    if not lines:
        return "not begun"
    record = json.loads(lines[-1])
    losses = ", ".join(f"{phase} {value:.4g}" for phase, value in record["losses"].items() if value is not None)
    return f"at {record['images_seen']:,} of {images:,} images, {losses}"


def _distance(metrics: Path, run: str, names: Sequence[str]) -> str:
    """Return the newest Frechet distance of a run, as `fid 2.31 at 1,000,000 images`."""
    for name in names:
        found = [read_json(path) | {"at": _images(path)} for path in metrics.glob(f"{run}@*/*/*.{name}.json")]
        counted = [each for each in found if each["at"] is not None]
        if counted:
            newest = max(counted, key=lambda each: each["at"])
            return f"{name} {_frechet(newest):.4g} at {newest['at']:,} images"
    return ""


def _images(path: Path) -> int | None:
    """Return the count of images in `metrics/{run}@{images}/...`; None where the snapshot is a chosen one."""
    count = path.parent.parent.name.rpartition("@")[2]
    return int(count) if count.isdecimal() else None


def _frechet(measured: Mapping[str, Any]) -> float:
    return measured["values"]["frechet"]


def _job(job: Job | None) -> str:
    if job is None:
        return ""
    restarts = f", requeued {job.restarts} times" if job.restarts else ""
    hours = "" if job.gpu_hours is None else f", {job.gpu_hours:.1f} GPU hours"
    return f"job {job.job_id} {job.state}{restarts}{hours}"
