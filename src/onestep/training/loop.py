"""The loop: draw a batch, take a step, update the averages, write records, snapshots and states."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from onestep.distributed import Ranks
from onestep.objectives import Networks
from onestep.training.assembly import Training
from onestep.training.execution import set_tf32
from onestep.training.log import Progress, RunLog, Window, record_of, write_snapshots
from onestep.training.resume import Resume
from onestep.training.step import PhaseReport, StepData, due, set_training_mode, train_step
from onestep.training.stopping import never
from onestep.training.watch import MakeWatch, watch_of

_logger = logging.getLogger(__name__)


def train(
    training: Training,
    *,
    folder: Path,
    ranks: Ranks,
    state_seconds: float,
    code: str,
    stop: Callable[[], bool] = never,
    watch: MakeWatch | None = None,
) -> dict[str, Any] | None:
    """Train to the end, from the newest valid state in `folder`, which is of this run hash only, or from the start.

    The arguments are those of `run.carry_out`.

    Returns:
        The run's history (`Resume.history`), and in rank 0 `files`, the SHA-256 of each snapshot and of the log by its
        name in the folder; None if a rank received a request to stop and the state is saved.

    Raises:
        ValueError: A state is of another run, or all are damaged, or too many gradients or weights were not finite.
    """
    set_training_mode(training.networks, phases=training.phases)
    resume = Resume(training, folder=folder, ranks=ranks, code=code)
    images_seen = resume.restore()
    set_tf32(training.execution.tf32)
    wrapped = wrapped_networks(training)
    log = RunLog(folder / "log.jsonl", bytes_kept=resume.log.size) if ranks.leads else None
    progress = Progress(training.name, images=training.run.images, images_seen=images_seen, shown=ranks.leads)
    watching = watch_of(watch, training, folder=folder, ranks=ranks)
    watching.begin(images_seen)
    window, began, begun_at = resume.window, time.monotonic(), images_seen
    with contextlib.closing(watching), contextlib.nullcontext() if log is None else contextlib.closing(log):
        while images_seen < training.run.images:
            if resume.stops(images_seen, window=window, log=log, seconds=state_seconds, stop=stop):
                break
            window.add(take_step(training, images_seen=images_seen, ranks=ranks, wrapped=wrapped))
            before, images_seen = images_seen, images_seen + training.run.batch
            if ranks.leads:
                resume.files |= write_snapshots(training, before=before, now=images_seen, folder=folder)
                began += watching.snapshots(before=before, now=images_seen)
            if images_seen % training.record_every and images_seen < training.run.images:
                continue
            rate = (images_seen - begun_at) / max(time.monotonic() - began, 1e-9)
            seconds = resume.history()["seconds"]
            record = record_of(
                training, images_seen=images_seen, window=window, rate=rate, seconds=seconds, ranks=ranks
            )
            began, begun_at, window = time.monotonic(), images_seen, Window()
            if log is not None:
                log.write(record)
                watching.record(record)
            progress.show(images_seen, losses=record["losses"])
    progress.close()
    if images_seen >= training.run.images:
        return {**resume.history(), "files": resume.files | ({} if log is None else {"log.jsonl": log.sha256})}
    if ranks.leads:
        seen = f"{images_seen:,} of {training.run.images:,} images"
        _logger.info("%s: stopped at %s; state saved in %s. Start it again to continue", training.name, seen, folder)
    return None


def wrapped_networks(training: Training) -> Networks:
    """Return the networks as first-order phases call them; weights must be those of the start or of the state."""
    return training.execution.wrapped(training.networks, families=training.families, averages=training.followers.keys())


def take_step(
    training: Training, *, images_seen: int, ranks: Ranks, wrapped: Networks | None = None
) -> list[PhaseReport]:
    """Take one step on this rank's next images, and update averages and adaptive parameters."""
    training.execution.begin_step()
    reports = train_step(
        due(training.phases, images_seen // training.run.batch),
        networks=training.networks,
        wrapped=wrapped,
        optimizers=training.optimizers,
        data=next_data(training, images_seen=images_seen, ranks=ranks),
        ranks=ranks,
    )
    update_averages(training, images_seen=images_seen)
    training.controls.observe(reports, images=training.run.batch, ranks=ranks)
    return reports


def next_data(training: Training, *, images_seen: int, ranks: Ranks) -> StepData:
    """Return this rank's next images with their condition, on its device."""
    rows = range(images_seen + ranks.rank, images_seen + training.run.batch, ranks.world)
    indices = torch.as_tensor(training.order.take(len(rows)))
    return StepData(
        images=training.codec.encode(training.pixels.index_select(0, indices).to(ranks.device)),
        condition=None if training.conditions is None else training.conditions[indices].to(ranks.device),
        rows=rows,
        seed=training.run.seed,
        images_seen=images_seen,
        controls=training.controls.values(),
        micro_batch=training.micro_batch,
    )


def update_averages(training: Training, *, images_seen: int) -> None:
    """Update the published averages and the networks that follow others, after a step that began at `images_seen`."""
    for average in (*training.averages.values(), *training.followers.values()):
        average.update(images_seen=images_seen, batch=training.run.batch)
