"""The loop: draw a batch, take a step, update the averages, write records, snapshots and states."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onestep.distributed import Ranks
from onestep.objectives import Networks
from onestep.run_record import read_run_record
from onestep.training.ahead import NextData, data_of_steps, next_data
from onestep.training.assembly import Training
from onestep.training.execution import Execution, arithmetic_of
from onestep.training.log import Progress, RunLog, Window, record_of, write_snapshots
from onestep.training.publication import publish_snapshots
from onestep.training.resume import Resume
from onestep.training.step import PhaseReport, due, set_training_mode, train_step
from onestep.training.stopping import never
from onestep.training.watch import MakeWatch, Watch, watch_of

_logger = logging.getLogger(__name__)


def train(
    training: Training,
    *,
    folder: Path,
    ranks: Ranks,
    state_seconds: float,
    code: str,
    stop: Callable[[], bool] = never,
    published: Path | None = None,
    keep_state: bool = True,
    watch: MakeWatch | None = None,
) -> dict[str, Any] | None:
    """Train to the end, from the newest valid state in `folder`, which is of this run hash only, or from the start.

    The arguments are those of `run.carry_out`; `published` is the run's published folder, for its snapshots.

    Returns:
        The run's history (`Resume.history`), `arithmetic` where it is not the default, and in rank 0 `files`, the
        SHA-256 of each snapshot and of the log by its name in the folder; None if a rank received a request to stop and
        the state is saved.

    Raises:
        ValueError: A state is of another run, or all are damaged, or too many gradients or weights were not finite.
    """
    set_training_mode(training.networks, phases=training.phases)
    resume = Resume(training, folder=folder, ranks=ranks, code=code, published=published)
    images_seen = resume.restore(stop=stop)
    if ranks.leads:
        _record(folder, resume.files, published=published)
    asked, training = training.execution, replace(training, execution=resume.in_force())
    _report_arithmetic(training, asked=asked, resumed=images_seen > 0, ranks=ranks)
    wrapped = wrapped_networks(training)
    log = RunLog(folder / "log.jsonl", bytes_kept=resume.log.size) if ranks.leads else None
    progress = Progress(training.name, images=training.run.images, images_seen=images_seen, shown=ranks.leads)
    watching = watch_of(watch, training, folder=folder, ranks=ranks)
    watching.begin(images_seen)
    window, since = resume.window, (time.monotonic(), images_seen)
    with (
        training.execution.computing(),
        contextlib.closing(resume),
        contextlib.closing(watching),
        contextlib.nullcontext() if log is None else contextlib.closing(log),
        data_of_steps(training, ranks=ranks) as data,
    ):
        while images_seen < training.run.images:
            if resume.stops(images_seen, window=window, log=log, seconds=state_seconds, stop=stop):
                break
            window.add(take_step(training, images_seen=images_seen, ranks=ranks, wrapped=wrapped, data=data))
            before, images_seen = images_seen, images_seen + training.run.batch
            found = write_snapshots(training, before=before, now=images_seen, folder=folder, ranks=ranks)
            if ranks.leads:
                _keep(found, resume, folder=folder, published=published)
                since = (since[0] + watching.snapshots(before=before, now=images_seen), since[1])
            if images_seen % training.record_every == 0:
                record = _record_of(training, resume, images_seen=images_seen, window=window, since=since, ranks=ranks)
                window, since = Window(), (time.monotonic(), images_seen)
                _write(record, log=log, progress=progress, watching=watching)
        finished = images_seen >= training.run.images
        if finished:
            last = _open_record(training, resume, images_seen=images_seen, window=window, since=since, ranks=ranks)
            if keep_state:
                resume.finish(images_seen, window=window, log=log)
            _write(last, log=log, progress=progress, watching=watching)
    progress.close()
    if finished:
        files = resume.files | ({} if log is None else {"log.jsonl": log.sha256})
        return {**resume.history(), **arithmetic_of(training.execution, asked=asked), "files": files}
    if ranks.leads:
        seen = f"{images_seen:,} of {training.run.images:,} images"
        _logger.info("%s: stopped at %s; state saved in %s. Start it again to continue", training.name, seen, folder)
    return None


def _report_arithmetic(training: Training, *, asked: Execution, resumed: bool, ranks: Ranks) -> None:
    """Report an arithmetic that is not the one of run.yaml, or that another device has chosen."""
    found = training.execution.bfloat16
    if not ranks.leads:
        return
    if found != asked.bfloat16:
        reason = "as it began" if resumed else "as does the reference, since bfloat16 is for CUDA devices"
        _logger.warning("%s: precision: computes in float32, not in bfloat16, %s", training.name, reason)
    elif found and ranks.device.type != "cuda":
        _logger.warning("%s: precision: computes in bfloat16 on a CPU, as it began", training.name)


def _open_record(
    training: Training, resume: Resume, *, images_seen: int, window: Window, since: tuple[float, int], ranks: Ranks
) -> dict[str, Any] | None:
    """Return the record of a run that ends between two records; None if it ends with one.

    A longer run has no such record: it continues from the state before it.
    """
    if window.is_empty:
        return None
    return _record_of(training, resume, images_seen=images_seen, window=window, since=since, ranks=ranks)


def _record_of(
    training: Training, resume: Resume, *, images_seen: int, window: Window, since: tuple[float, int], ranks: Ranks
) -> dict[str, Any]:
    rate, seconds = _rate(since, images_seen), resume.history()["seconds"]
    return record_of(training, images_seen=images_seen, window=window, rate=rate, seconds=seconds, ranks=ranks)


def _rate(since: tuple[float, int], images_seen: int) -> float:
    """Return images per second since a time and its images seen."""
    began, begun_at = since
    return (images_seen - begun_at) / max(time.monotonic() - began, 1e-9)


def _write(record: Mapping[str, Any] | None, *, log: RunLog | None, progress: Progress, watching: Watch) -> None:
    if record is None:
        return
    if log is not None:
        log.write(record)
        watching.record(record)
    progress.show(record["images_seen"], losses=record["losses"])


def _keep(files: Mapping[str, str], resume: Resume, *, folder: Path, published: Path | None) -> None:
    """Record the snapshots of one step, if it has some, and publish them while the training continues."""
    if files:
        resume.files |= files
        _record(folder, resume.files, published=published)


def _record(folder: Path, files: Mapping[str, str], *, published: Path | None) -> None:
    """Record snapshots and their digests in the work folder, and publish those that are not."""
    record = read_run_record(folder)
    if record is not None:
        replace(record, files={**record.files, **files}).write(folder)
        if published is not None:
            publish_snapshots(folder, published)


def wrapped_networks(training: Training) -> Networks:
    """Return the networks as first-order phases call them; weights must be those of the start or of the state."""
    return training.execution.wrapped(training.networks, families=training.families, averages=training.followers.keys())


def take_step(
    training: Training,
    *,
    images_seen: int,
    ranks: Ranks,
    wrapped: Networks | None = None,
    data: NextData | None = None,
) -> list[PhaseReport]:
    """Take one step on this rank's next images, of `data`, and update averages and adaptive parameters."""
    training.execution.begin_step()
    reports = train_step(
        due(training.phases, images_seen // training.run.batch),
        networks=training.networks,
        wrapped=wrapped,
        optimizers=training.optimizers,
        data=next_data(training, images_seen=images_seen, ranks=ranks) if data is None else data(images_seen),
        ranks=ranks,
    )
    update_averages(training, images_seen=images_seen)
    training.controls.observe(reports, images=training.run.batch, ranks=ranks)
    return reports


def update_averages(training: Training, *, images_seen: int) -> None:
    """Update the published averages and the networks that follow others, after a step that began at `images_seen`."""
    for average in (*training.averages.values(), *training.followers.values()):
        average.update(images_seen=images_seen, batch=training.run.batch)
