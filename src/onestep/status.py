"""The state of each run of a config, found by its run hash: how far it is, how fast, its last losses and number.

Imports no torch. What another config trained under the same name is named as such, and its numbers are not shown.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from onestep.checkpoints.digests import known_digest
from onestep.config.identity import specs_of
from onestep.config.reading import run_document
from onestep.files import read_json, regular_file
from onestep.launch.cluster import ACTIVE
from onestep.launch.journal import JobSeen, Journal
from onestep.models import Snapshot, parse_model
from onestep.plan import Plan, measured
from onestep.plan.progress import progress
from onestep.plan.train import intention, training_code, weight_files
from onestep.records import found_at, log_misfit, newest_watched, read_summary, read_value
from onestep.results import State
from onestep.run_record import recorded_config
from onestep.training.assignment import Inputs
from onestep.training.publication import DONE, FAILED

_SUMMARY = ("images_seen", "seconds", "world_size", "device", "restarts", "spec")
_STALLED_SECONDS = 600.0  # without a record, a run on another machine counts as stopped
_ERRORS = ("onestep train: ", "onestep launch: ", "error: ")  # how a log names the reason of a failure
_TAIL = 1 << 16  # bytes
_RECORDS = 10  # over which a rate is taken

JobOf = Callable[[Journal], JobSeen | None]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What is known of one run.

    Attributes:
        state: `finished`, `running`, `queued`, `stopped`, `failed`, `not begun` or `waiting for inputs`.
        rate: Images per second, over the last records.
        losses: By phase, of the last record.
        number: (metric, value, images seen by the snapshot) of the newest measured snapshot; for a damaged file, what
            is wrong with it in place of the value.
        hours: Of all processes together; `device` is that of the processes.
        missing: An input that does not exist; without it the run hash is unknown.
        reason: Of a failure; `log` is the file with the rest.
        stale: Of other configs under this name: (run hash, images seen).
        intention: What training it would do, such as "continues digits_d2o from 40,000 to 80,000 images"; empty for a
            run that trains, is finished, or has nothing yet.
    """

    run: str
    state: str
    images: int
    images_seen: int = 0
    rate: float | None = None
    losses: Mapping[str, float] | None = None
    number: tuple[str, float | str, int] | None = None
    hours: float | None = None
    device: str = "process"
    job: JobSeen | None = None
    missing: str = ""
    reason: str = ""
    log: Path | None = None
    stale: tuple[tuple[str, int], ...] = ()
    intention: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the present rate; None for a run that does not train."""
        if self.state != "running" or not self.rate:
            return None
        return max(0, self.images - self.images_seen) / self.rate


def statuses(plan: Plan, *, state: Path, job_of: JobOf, values: Mapping[str, str]) -> list[RunStatus]:
    """Return the status of each run; paths are below the working directory.

    Runs of studies on request alone are there once they have begun. `job_of` returns the newest SLURM job of a work
    folder. `values` has the number to show by metric; of the first metric with a measured snapshot it counts.
    """
    folders = State(state)
    default = set(measured.default_runs(plan.experiment))
    places = ((run, folders.run(run), plan.results.run(run)) for run in plan.experiment.runs)
    runs = [run for run, *both in places if run in default or any(map(Path.exists, both))]
    return [_status(plan, run, state=folders, job_of=job_of, values=values) for run in runs]


def _status(plan: Plan, run: str, *, state: State, job_of: JobOf, values: Mapping[str, str]) -> RunStatus:
    images, paths = plan.experiment.runs[run].images, plan.results
    specs, missing = _specs(plan, run)
    published, fault = found_at(paths.summary(run), functools.partial(read_summary, run=run, keys=_SUMMARY))
    known = functools.partial(RunStatus, run=run, images=images)
    log = Path(f"logs/train/{run}.log")
    if fault.startswith("damaged"):
        return known(state="failed", reason=fault, log=paths.summary(run))
    if not specs:  # inputs may be gone meanwhile
        found = progress(plan.written, run, results=plan.results, state=state)
        if published is not None and published["images_seen"] >= images and not found.changed:
            return known(state="finished", images_seen=published["images_seen"], missing=missing)
        mine = {found.work.name} if found.work is not None else set()
        if found.published is not None and not found.changed:
            mine.add(found.published.spec)
        stale = _others(state.run(run), published, mine=mine)
        return known(state="waiting for inputs", images_seen=found.seen, missing=missing, stale=stale)
    work = next((folder for spec in specs if (folder := state.work(run, spec)).is_dir()), state.work(run, specs[0]))
    mine = {*specs, work.resolve().name}
    known = functools.partial(known, stale=_others(state.run(run), published, mine=mine))
    if published is not None and published["spec"] not in mine:
        published = None
    done = published or found_at(work / DONE, functools.partial(read_summary, run=run, keys=_SUMMARY))[0]
    number = _measured(plan, run, work=work, is_published=published is not None, values=values)
    number = number or _watched(work)
    # One of fewer images is about to grow.
    if done is not None and done["images_seen"] >= images:
        device = "CPU process" if done["device"].startswith("CPU") else "GPU"
        hours = done["seconds"] * done["world_size"] / 3600
        seen = done["images_seen"]
        return known(state="finished", images_seen=seen, number=number, hours=hours, device=device)
    record, fault = found_at(work / "log.jsonl", _last_record)
    journal = Journal(work, images=images)
    job = job_of(journal) if work.exists() else None
    reason, log = _failure(journal, log=log, job=job, fault=fault)
    now = _state(work, record, job=job, is_failed=bool(reason))
    has_begun = record is not None or published is not None or paths.summary(run).exists()
    return known(
        state=now,
        intention=(intention(plan, run) or "") if has_begun and now not in ("running", "queued") else "",
        images_seen=0 if record is None else int(record["images_seen"]),
        rate=_rate(work / "log.jsonl"),
        losses=None if record is None else {k: v for k, v in record.get("losses", {}).items() if v is not None},
        number=number,
        hours=_hours(record, job),
        device="CPU process" if plan.experiment.launch.device == "cpu" else "GPU",
        job=job,
        reason=reason,
        log=log if reason else None,
    )


def _specs(plan: Plan, run: str) -> tuple[list[str], str]:
    """Return the run hash of a run of this config and those of earlier versions, or none and a missing input."""
    files = weight_files(plan, run)
    inputs = Inputs(
        run=plan.results.run_config(run), data=plan.results.data(plan.experiment.runs[run].dataset), **files
    )
    networks = [
        inputs.teacher,
        *inputs.backbones.values(),
        inputs.class_embeddings,
        inputs.init,
        inputs.codec,
        *inputs.pairs,
    ]
    paths = [inputs.data, *filter(None, networks)]
    for path in paths:
        if not path.exists():
            return [], str(path)
    code = training_code(plan, run) if plan.experiment.rerun.training_on_code_change else None
    before, digests = recorded_config(plan.results.run(run)), inputs.digests(read=known_digest)
    return specs_of(run_document(plan.written, run), before=before, digests=digests, code=code), ""


def _others(folder: Path, published: Mapping[str, Any] | None, *, mine: Collection[str]) -> tuple[tuple[str, int], ...]:
    """Return the runs of other configs under this name, whose run hash is not among `mine`, with their images seen."""
    found = {} if published is None else {str(published["spec"]): int(published["images_seen"])}
    for log in sorted(folder.glob("*/log.jsonl")):
        record, _ = found_at(log, _last_record)
        found.setdefault(log.parent.resolve().name, 0 if record is None else int(record["images_seen"]))
    return tuple((each, seen) for each, seen in found.items() if each not in mine)


def _state(work: Path, record: Mapping[str, Any] | None, *, job: JobSeen | None, is_failed: bool) -> str:
    if job is not None and job.state in ACTIVE:
        return "running" if job.state in ("RUNNING", "COMPLETING") else "queued"
    if _is_locked(work / "lock") or (job is None and _runs_elsewhere(work, record)):
        return "running"
    if is_failed:
        return "failed"
    return "not begun" if record is None else "stopped"


def _is_locked(lock: Path) -> bool:
    """Whether a process of this machine trains; looking must not take the lock from one that starts."""
    try:
        inode, locks = os.stat(lock).st_ino, Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False
    return any(line.split()[-3].rpartition(":")[2] == str(inode) for line in locks.splitlines() if "FLOCK" in line)


def _runs_elsewhere(work: Path, record: Mapping[str, Any] | None) -> bool:
    """Whether another machine trains, as far as its last record shows."""
    try:
        owner = (work / "lock.owner").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    if record is None or not record.get("time") or owner.endswith(f" on {socket.gethostname()}"):
        return False
    return (datetime.now(UTC) - datetime.fromisoformat(record["time"])).total_seconds() < _STALLED_SECONDS


def _failure(journal: Journal, *, log: Path, job: JobSeen | None, fault: str) -> tuple[str, Path]:
    """Return the reason of a failure, empty for none, and the log to read."""
    work = journal.folder
    if job is not None:
        log = journal.log_of(job.job_id)
    if fault.startswith("damaged"):
        return fault, work / "log.jsonl"
    if (work / FAILED).exists():
        found, damaged = found_at(work / FAILED, functools.partial(read_json, shape={"reason": str}))
        return (damaged if found is None else found["reason"]), log
    if job is not None and job.state not in ACTIVE and not journal.is_done:
        return f"job {job.job_id} {job.state}", log
    # Before there is a work folder, and of the processes that were killed, there is the log of the rule alone.
    lines = _tail(log) if not (work / "log.jsonl").exists() else []
    errors = [line for line in lines if line.startswith(_ERRORS)]
    return (errors[-1].partition(": ")[2] if errors else ""), log


def _tail(path: Path) -> list[str]:
    try:
        with open(regular_file(path), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read().decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return []


def _last_record(log: Path) -> dict[str, Any] | None:
    """Return the last complete record of a log; None if it contains no record yet."""
    found = _last_records(log, 1)
    return found[-1] if found else None


def _last_records(log: Path, most: int) -> list[dict[str, Any]]:
    regular_file(log)
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        lines = file.read().rpartition(b"\n")[0].splitlines()[-most:]
    try:
        records = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{log}: got no JSON in its last lines ({error})") from error
    for record in records:
        if found := log_misfit(record):
            raise ValueError(f"{log}: in its last lines {found}")
    return records


def _rate(log: Path) -> float | None:
    """Return images per second over the last records, which are of equal numbers of images; None without any."""
    records, _ = found_at(log, functools.partial(_last_records, most=_RECORDS))
    rates = [rate for record in records or () if (rate := record.get("images_per_second"))]
    return statistics.harmonic_mean(rates) if rates else None


def _hours(record: Mapping[str, Any] | None, job: JobSeen | None) -> float | None:
    if job is not None and job.gpu_hours is not None:
        return job.gpu_hours
    if record is None or record.get("seconds") is None:
        return None
    return record["seconds"] * record.get("processes", 1) / 3600


def _watched(work: Path) -> tuple[str, float, int] | None:
    newest = newest_watched(work).number
    return None if newest is None else (newest[0], newest[2], newest[3])


def _measured(
    plan: Plan, run: str, *, work: Path, is_published: bool, values: Mapping[str, str]
) -> tuple[str, float | str, int] | None:
    """Return the number of the newest measured snapshot that is this run's, such as ("fid", 2.31, 1000000)."""
    rows = [row for table in plan.experiment.tables.values() for row in table.rows if run in row.members]
    sampler = next((row.sampler for row in rows if row.sampler), None) or "*"
    for metric, value in values.items():
        found: dict[int, Path] = {}
        place = plan.results.metric(f"{glob.escape(run)}@*", sampler, "*", metric)
        for path in map(Path, sorted(glob.glob(str(place)), reverse=True)):
            model = parse_model(path.parents[1].name)
            if isinstance(model, Snapshot) and (is_published or _is_own(plan, run, model.images, work=work)):
                found[model.images] = path
        if found:
            images = max(found)
            number, fault = found_at(found[images], functools.partial(read_value, value=value))
            return metric, fault if number is None else number, images
    return None


def _is_own(plan: Plan, run: str, images: int, *, work: Path) -> bool:
    """Whether a published snapshot is the file of a work folder."""
    try:
        return plan.results.snapshot(run, images).samefile(work / f"snapshots/{images}.safetensors")
    except OSError:
        return False


def lines_of(found: Iterable[RunStatus]) -> Iterator[str]:
    """Yield the lines that show statuses: one for a run, and one more for a reason and for other configs."""
    found = list(found)
    width = max((len(each.run) for each in found), default=0)
    kind = max((len(each.state) for each in found), default=0)
    for each in found:
        yield f"{each.run:<{width}}  {each.state:<{kind}}  {'; '.join(_facts(each))}".rstrip()
        if each.reason:
            yield f"{'':<{width}}  {each.reason} (log: {each.log})"
        if each.intention:
            yield f"{'':<{width}}  next: {each.intention}"
        for spec, seen in each.stale:
            yield f"{'':<{width}}  stale: {seen:,} images under another config (run hash {spec})"


def _facts(each: RunStatus) -> Iterator[str]:
    if each.images_seen or each.state == "running":
        seen, share = min(each.images_seen, each.images), min(1.0, each.images_seen / each.images)
        yield f"{seen:,} images" if each.state == "finished" else f"{seen:,} of {each.images:,} images, {share:.0%}"
    if each.state == "running" and each.rate:
        left = each.seconds_left
        yield f"{each.rate:,.4g} images/s" + ("" if left is None else f", {duration(left)} left")
    if each.number is not None:
        metric, value, images = each.number
        yield f"{metric} {value if isinstance(value, str) else f'{value:.4g}'} at {images:,} images"
    if each.losses and each.state != "finished":
        yield ", ".join(f"{phase} {value:.4g}" for phase, value in each.losses.items())
    if each.job is not None:
        restarts = f", requeued {each.job.restarts} times" if each.job.restarts else ""
        yield f"job {each.job.job_id} {each.job.state}{restarts}"
    if each.hours is not None:
        yield f"{each.hours:.2g} {each.device} hours"
    if each.missing:
        yield f"no {each.missing}"


def duration(seconds: float) -> str:
    """Return seconds as `3 d 4 h`, `4:05 h` or `0:12`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02} h" if hours else f"{minutes}:{rest:02} min"


def repeated(find: Callable[[], list[RunStatus]], *, seconds: float) -> None:
    """Show statuses again and again until all runs are finished: in place on a terminal, else as further lines."""
    console = Console()
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
        while True:
            found = find()
            text = Text("\n".join([f"{datetime.now():%H:%M:%S}", *lines_of(found)]))
            if live is None:
                print(text.plain, flush=True)
            else:
                live.update(text, refresh=True)
            if all(each.state == "finished" for each in found):
                return
            time.sleep(seconds)
