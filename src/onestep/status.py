"""The state of each run: progress, newest metric, SLURM job, and whether the training code has changed since."""

from __future__ import annotations

import functools
import glob
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onestep.files import regular_file
from onestep.launch.journal import JobSeen, Journal
from onestep.models import Snapshot, parse_model
from onestep.records import found_at, log_misfit, read_summary, read_value
from onestep.results import Results, State

_SUMMARY = ("images_seen", "seconds", "world_size", "device", "restarts", "codes")


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
        published = summary.exists() or summary.is_symlink() or paths.log(run).exists()
        if published:
            progress = _finished(summary, run=run, code=codes[run])
        else:
            progress = _progress(State(state).run(run), images=images)
        facts = [progress, _newest(paths, run, metrics), "" if published else _job(job_of(run))]
        yield f"{run:<{width}}  {'; '.join(filter(None, facts))}"


def _finished(summary: Path, *, run: str, code: str) -> str:
    facts, fault = found_at(summary, functools.partial(read_summary, run=run, keys=_SUMMARY))
    if facts is None:
        return fault
    hours = facts["seconds"] * facts["world_size"] / 3600
    device = "CPU process" if facts["device"].startswith("CPU") else "GPU"
    restarts = f", restarted {facts['restarts']} times" if facts["restarts"] else ""
    mark = "" if facts["codes"] == [code] else "; the training code has changed since"
    return f"finished, {facts['images_seen']:,} images, {hours:.2f} {device} hours{restarts}{mark}"


def _progress(folder: Path, *, images: int) -> str:
    logs = sorted(folder.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return "not begun"
    record, fault = found_at(logs[-1], _last_record)
    if record is None:
        return fault or "not begun"
    losses = ", ".join(f"{phase} {value:.4g}" for phase, value in record.get("losses", {}).items() if value is not None)
    return f"at {record['images_seen']:,} of {images:,} images, {losses}"


def _last_record(log: Path) -> dict[str, Any] | None:
    """Return the last complete record of a log; None where it has none yet."""
    try:
        record = Journal(regular_file(log).parent).last_record
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{log}: got no JSON in its last line ({error})") from error
    if record is not None and (found := log_misfit(record)):
        raise ValueError(f"{log}: in its last line {found}")
    return record


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
            number, fault = found_at(found[newest], functools.partial(read_value, value=value))
            return f"{metric} {fault if number is None else f'{number:.4g}'} at {newest:,} images"
    return ""


def _job(job: JobSeen | None) -> str:
    if job is None:
        return ""
    restarts = f", requeued {job.restarts} times" if job.restarts else ""
    hours = "" if job.gpu_hours is None else f", {job.gpu_hours:.1f} GPU hours"
    return f"job {job.job_id} {job.state}{restarts}{hours}"
