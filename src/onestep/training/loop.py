"""The loop: draw a batch, take a step, keep the average, write records, snapshots and states."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onestep import distributed
from onestep.checkpoints.snapshot import write_snapshot
from onestep.data import to_images
from onestep.data._cache import OneHot
from onestep.distributed import Ranks
from onestep.models import average_suffix
from onestep.objectives import Batch, Phase, Players
from onestep.training.controls import Controls
from onestep.training.ema import MovingAverage
from onestep.training.log import Progress, RunLog, Window, peak_memory_mib
from onestep.training.randomness import CountedRows
from onestep.training.resume import Resume
from onestep.training.speed import Speed, set_tf32, views_of
from onestep.training.step import Optimizers, PhaseReport, due, modules_in_training_mode, train_step
from onestep.training.stopping import never

_logger = logging.getLogger(__name__)

# Records a run writes, whatever its length.
_RECORDS = 400

# What a rank wishes for between two steps; all do the most that one wishes for.
_GO_ON, _SAVE, _STOP = range(3)


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that one run trains with, built from its run.yaml by `assembly.assemble`.

    Attributes:
        name: The run.
        phases: The objective's optimizer steps.
        players: The networks by role.
        optimizers: One a trained role.
        published: The player that snapshots publish.
        average: Its main moving average.
        other_averages: Its averages of other half-lives, by half-life in images.
        controls: The numbers that the phases steer.
        network: Its config, written into each snapshot.
        pixels: The dataset, uint8 [N, C, H, W].
        labels: Its classes: `labels[indices]` is one-hot float32 [B, K]; None when the run is unconditional.
        order: This rank's endless order of dataset indices, with `take(count)`, `state()` and `restore(state)`.
        batch: Images a step, over all ranks.
        images: Images the run sees in all.
        snapshots: Counts of images at which a snapshot is taken (at the first step that reaches them).
        seed: Seed of the run.
        non_finite_limit: Largest share of gradient entries that may be not finite, over one record.
        rows_per_pass: Most rows of a rank that pass the networks at once; None for all. A matter of memory: the rest
            follow and the gradients add up. Only what rows share differs then: batch norms see a pass at a time, and
            dropout draws other masks.
        speed: Number types, and who carries the operations out.
    """

    name: str
    phases: tuple[Phase, ...]
    players: Players
    optimizers: Optimizers
    published: nn.Module
    average: MovingAverage
    controls: Controls
    other_averages: Mapping[int, MovingAverage] = field(default_factory=dict)
    network: Mapping[str, Any]
    pixels: Tensor
    labels: OneHot | Tensor | None
    order: Any
    batch: int
    images: int
    snapshots: tuple[int, ...]
    seed: int
    non_finite_limit: float
    rows_per_pass: int | None = None
    speed: Speed = Speed()

    @property
    def record_every(self) -> int:
        """Images between two records, a multiple of the batch."""
        return max(1, self.images // (_RECORDS * self.batch)) * self.batch

    @property
    def averages(self) -> dict[str, MovingAverage]:
        """All averages by what their files' names end in: nothing for the main one."""
        others = {average_suffix(half_life): average for half_life, average in self.other_averages.items()}
        return {average_suffix(None): self.average} | others


def train(
    training: Training,
    *,
    folder: Path,
    ranks: Ranks,
    state_seconds: float,
    code: str,
    stop: Callable[[], bool] = never,
) -> dict[str, Any] | None:
    """Train to the end, from the newest valid state in `folder` or from the start.

    Args:
        training: What to train.
        folder: Of this run and spec alone: receives states, snapshots/ and log.jsonl.
        ranks: This process among those of the run.
        state_seconds: Seconds between two states, which is what a killed run loses at most.
        code: Fingerprint of the training code now running.
        stop: Whether this process was asked to stop.

    Returns:
        `restarts`: how often it was taken up again, `seconds`: training time over all lives, `codes`: fingerprints of
        the code that trained it, oldest first. None where a rank was asked to stop, and the state is written.

    Raises:
        ValueError: A state is of another run, or all are damaged, or too many gradients were not finite.
    """
    modules_in_training_mode(training.players)
    resume = Resume(training, folder=folder, ranks=ranks, code=code)
    images_seen = resume.restore()
    set_tf32(training.speed.tf32)
    views = views_of(training.players, speed=training.speed)
    log = RunLog(folder / "log.jsonl", bytes_kept=resume.log_bytes) if ranks.leads else None
    boundary = _Boundary(resume, log=log, ranks=ranks, images_seen=images_seen, seconds=state_seconds, stop=stop)
    progress, window = Progress(training.name, images=training.images), resume.window
    began, begun_at = time.monotonic(), images_seen
    while images_seen < training.images and not boundary.ends(images_seen, window=window):
        window.add(_step(training, views=views, images_seen=images_seen, ranks=ranks))
        before, images_seen = images_seen, images_seen + training.batch
        _snapshot(training, before=before, now=images_seen, folder=folder, ranks=ranks)
        if images_seen % training.record_every and images_seen < training.images:
            continue
        rate = (images_seen - begun_at) / max(time.monotonic() - began, 1e-9)
        record = _record(training, images_seen=images_seen, window=window, rate=rate, ranks=ranks)
        began, begun_at, window = time.monotonic(), images_seen, Window()
        if log is not None:
            log.write(record)
            progress.show(images_seen, losses=record["losses"])
    if log is not None:
        log.settled_bytes()
        log.close()
    if images_seen < training.images:
        _say_stopped(training, images_seen=images_seen, folder=folder, ranks=ranks)
        return None
    return resume.history()


class _Boundary:
    """What happens between two steps: the ranks agree whether to write a state, and whether to leave after it."""

    def __init__(
        self,
        resume: Resume,
        *,
        log: RunLog | None,
        ranks: Ranks,
        images_seen: int,
        seconds: float,
        stop: Callable[[], bool],
    ) -> None:
        self._resume, self._log, self._ranks, self._stop = resume, log, ranks, stop
        self._seconds, self._due = seconds, time.monotonic() + seconds
        # What was restored needs no writing, nor does a start.
        self._saved_at = images_seen

    def ends(self, images_seen: int, *, window: Window) -> bool:
        """Write a state if one is due or a rank was asked to stop; return whether to leave. All ranks call this."""
        turn = distributed.highest(self._wish(), ranks=self._ranks)
        if turn != _GO_ON and images_seen > self._saved_at:
            log_bytes = 0 if self._log is None else self._log.settled_bytes()
            self._resume.save(images_seen=images_seen, log_bytes=log_bytes, window=window)
            self._saved_at, self._due = images_seen, time.monotonic() + self._seconds
        return turn == _STOP

    def _wish(self) -> int:
        if self._stop():
            return _STOP
        # One clock decides for all ranks: writing a state is a collective act.
        return _SAVE if self._ranks.leads and time.monotonic() >= self._due else _GO_ON


def _say_stopped(training: Training, *, images_seen: int, folder: Path, ranks: Ranks) -> None:
    if ranks.leads:
        seen = f"{training.name}: stopped by a signal at {images_seen:,} of {training.images:,} images"
        _logger.info("%s; its state is saved in %s, and it goes on from there when it is started again", seen, folder)


def _step(training: Training, *, images_seen: int, ranks: Ranks, views: Players | None = None) -> list[PhaseReport]:
    """Take one step on the next rows of this rank."""
    training.speed.begin_step()
    reports = train_step(
        due(training.phases, images_seen // training.batch),
        players=training.players,
        views=views,
        optimizers=training.optimizers,
        passes_for=next_batches(training, images_seen=images_seen, ranks=ranks),
        ranks=ranks,
    )
    for average in training.averages.values():
        average.update(images_seen=images_seen, batch=training.batch)
    training.controls.observe(reports, images=training.batch, ranks=ranks)
    return reports


def next_batches(training: Training, *, images_seen: int, ranks: Ranks) -> Callable[[Phase], list[Batch]]:
    """Take the next rows of this rank; return what gives them to a phase, in passes, with fresh random streams."""
    rows = range(images_seen + ranks.rank, images_seen + training.batch, ranks.world)
    indices = torch.as_tensor(training.order.take(len(rows)))
    images = to_images(training.pixels.index_select(0, indices).to(ranks.device))
    labels = None if training.labels is None else training.labels[indices].to(ranks.device)
    controls = training.controls.values()

    def batch_of(part: slice, phase: Phase) -> Batch:
        random = CountedRows(seed=training.seed, phase=phase.name, rows=rows[part], device=ranks.device)
        chosen = None if labels is None else labels[part]
        return Batch(images=images[part], labels=chosen, random=random, images_seen=images_seen, controls=controls)

    def passes_for(phase: Phase) -> list[Batch]:
        return [batch_of(part, phase) for part in passes(len(rows), limit=training.rows_per_pass)]

    return passes_for


def passes(rows: int, *, limit: int | None) -> list[slice]:
    """Return the fewest parts of `rows` rows of which none has more than `limit`, as even as can be."""
    count = 1 if limit is None else -(-rows // limit)
    return [slice(*edges) for edges in pairwise(rows * part // count for part in range(count + 1))]


def _snapshot(training: Training, *, before: int, now: int, folder: Path, ranks: Ranks) -> None:
    """Write each average where this step reached a snapshot's count."""
    reached = [count for count in training.snapshots if before < count <= now and ranks.leads]
    for count in reached:
        for suffix, average in training.averages.items():
            path = folder / "snapshots" / f"{count}{suffix}.safetensors"
            write_snapshot(path, average.published(), dict(training.network))


def _record(training: Training, *, images_seen: int, window: Window, rate: float, ranks: Ranks) -> dict[str, Any]:
    """Return one line of the log; stop the run where too many gradients were not finite."""
    replaced, share = window.replaced()
    if share > training.non_finite_limit:
        raise ValueError(
            f"{training.name}: {100 * share:.2g}% of the gradient entries before image {images_seen:,} "
            f"were not finite, more than non_finite_limit allows ({100 * training.non_finite_limit:.2g}%); "
            "lower the learning rates, or raise the limit if this is known to pass"
        )
    return {
        "images_seen": images_seen,
        **window.means(ranks=ranks),
        **({"controls": dict(controls)} if (controls := training.controls.values()) else {}),
        "images_per_second": round(rate, 1),
        "memory_mib": peak_memory_mib(ranks.device),
        "non_finite": replaced,
    }
