"""The state of each run: progress, newest metric, SLURM job, and whether the training code has changed since."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from onestep.files import read_json
from onestep.launch.journal import JobSeen, Journal
from onestep.models import Snapshot, parse_model
from onestep.results import Results, State


def status_lines(
    runs: Mapping[str, int],
    *,
    codes: Mapping[str, str],
    job_of: Callable[[str], JobSeen | None],
    metrics: Mapping[str, str],
    results: Path,
    state: Path,
) -> Iterator[str]:
    """Yield one line for each run: `runs` has their lengths in images, `codes` the fingerprints of their current code.

    `job_of` returns the newest job of an unpublished run. `metrics` has the value to show by metric; the first metric
    with a measured snapshot counts.
    """
    paths, width = Results(results), max(map(len, runs), default=0)
    for run, images in runs.items():
        summary = paths.summary(run)
        published = summary.exists()
        progress = _finished(summary, code=codes[run]) if published else _progress(State(state).run(run), images=images)
        facts = [progress, _newest(paths, run, metrics), "" if published else _job(job_of(run))]
        yield f"{run:<{width}}  {'; '.join(filter(None, facts))}"


def _finished(summary: Path, *, code: str) -> str:
    facts = read_json(summary)
    hours = facts["seconds"] * facts["world_size"] / 3600
    device = "CPU process" if facts["device"].startswith("CPU") else "GPU"
    restarts = f", restarted {facts['restarts']} times" if facts["restarts"] else ""
    mark = "" if facts["codes"] == [code] else "; the training code has changed since"
    return f"finished, {facts['images_seen']:,} images, {hours:.2f} {device} hours{restarts}{mark}"


def _progress(folder: Path, *, images: int) -> str:
    logs = sorted(folder.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    record = Journal(logs[-1].parent).last_record if logs else None
    if record is None:
        return "not begun"
    losses = ", ".join(f"{phase} {value:.4g}" for phase, value in record["losses"].items() if value is not None)
    return f"at {record['images_seen']:,} of {images:,} images, {losses}"


def _newest(paths: Results, run: str, metrics: Mapping[str, str]) -> str:
    """Return the metric of the newest measured snapshot, such as "fid 2.31 at 1,000,000 images"."""
    for metric, value in metrics.items():
        found = {}
        for path in map(Path, glob.glob(str(paths.metric(f"{run}@*", "*", "*", metric)))):
            model = parse_model(path.parents[1].name)
            if isinstance(model, Snapshot):
                found[model.images] = path
        if found:
            newest = max(found)
            return f"{metric} {read_json(found[newest])['values'][value]:.4g} at {newest:,} images"
    return ""


def _job(job: JobSeen | None) -> str:
    if job is None:
        return ""
    restarts = f", requeued {job.restarts} times" if job.restarts else ""
    hours = "" if job.gpu_hours is None else f", {job.gpu_hours:.1f} GPU hours"
    return f"job {job.job_id} {job.state}{restarts}{hours}"
