"""Data of the next steps, prepared by one thread while the device computes: images, conditions and random numbers.

On a CPU the thread would take the cores of the training, so it works for CUDA devices only. Whether it works changes no
bit: images come in the same order, and each has the streams of its number (`CountedRows`).
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from onestep.distributed import Ranks
from onestep.training import streams
from onestep.training.assembly import Training
from onestep.training.latents import decoder_of, images_of, posterior_numbers
from onestep.training.step import StepData, due
from onestep.training.streams import Draw, drawn_rows

NextData = Callable[[int], StepData]
"""Returns this rank's data of the step that begins at a number of images seen; called for one step after the other."""

_STEPS = 2  # prepared ahead of the current one


class _Prepared(NamedTuple):
    """Data of one step in the host's memory, pinned where a CUDA device copies it."""

    pixels: Tensor
    condition: Tensor | None
    numbers: Mapping[str, Sequence[tuple[Draw, Tensor]]]
    normal: Tensor | None  # of the draws of latents


@contextlib.contextmanager
def data_of_steps(training: Training, *, ranks: Ranks, ahead: bool | None = None) -> Iterator[NextData]:
    """Yield the source of a training's data; `ahead` by a thread, which ends with the block, by default on CUDA.

    A phase is expected to draw what it drew last time; other draws are made when they are requested. An error in the
    thread is raised by the request for its data.
    """
    if not (ranks.device.type == "cuda" if ahead is None else ahead):
        yield lambda images_seen: next_data(training, images_seen=images_seen, ranks=ranks)
        return
    thread = ThreadPoolExecutor(1, "data", initializer=_use, initargs=(ranks.device,))
    try:
        yield _Ahead(training, ranks=ranks, thread=thread).next
    finally:
        thread.shutdown(cancel_futures=True)


def next_data(training: Training, *, images_seen: int, ranks: Ranks) -> StepData:
    """Return this rank's data of one step, on its device."""
    rows = rows_of(training, images_seen=images_seen, ranks=ranks)
    indices = torch.as_tensor(training.order.take(len(rows)))
    pinned = ranks.device.type in streams.PINNED
    return _on_device(_prepared(training, indices, rows, pinned=pinned), training, rows, ranks=ranks)


def rows_of(training: Training, *, images_seen: int, ranks: Ranks) -> range:
    """Return the numbers in the run of this rank's images of one step."""
    return range(images_seen + ranks.rank, images_seen + training.run.batch, ranks.world)


class _Ahead:
    def __init__(self, training: Training, *, ranks: Ranks, thread: ThreadPoolExecutor) -> None:
        self._training, self._ranks, self._thread = training, ranks, thread
        # The training's own order stays at the current step, because it is part of the state.
        self._order = copy.deepcopy(training.order)
        self._draws: dict[str, Sequence[Draw]] = {}
        self._last: StepData | None = None
        self._waiting: deque[tuple[int, Future[_Prepared]]] = deque()

    def next(self, images_seen: int) -> StepData:
        training = self._training
        if self._last is not None:
            self._draws = self._draws | {phase: tuple(draws) for phase, draws in self._last.draws.items()}
        if not self._waiting:
            self._submit(images_seen)
        while len(self._waiting) <= _STEPS:
            self._submit(self._waiting[-1][0] + training.run.batch)
        begins_at, prepared = self._waiting.popleft()
        assert begins_at == images_seen, "one step after the other"
        rows = rows_of(training, images_seen=images_seen, ranks=self._ranks)
        self._last = _on_device(prepared.result(), training, rows, ranks=self._ranks)
        training.order.take(len(rows))
        return self._last

    def _submit(self, images_seen: int) -> None:
        self._waiting.append((images_seen, self._thread.submit(self._prepare, images_seen)))

    def _prepare(self, images_seen: int) -> _Prepared:
        training, pinned = self._training, self._ranks.device.type in streams.PINNED
        rows = rows_of(training, images_seen=images_seen, ranks=self._ranks)
        prepared = _prepared(training, torch.as_tensor(self._order.take(len(rows))), rows, pinned=pinned)
        numbers = {}
        for phase in due(training.phases, images_seen // training.run.batch):
            draws = self._draws.get(phase.name, ())
            found = drawn_rows(draws, seed=training.run.seed, phase=phase.name, rows=rows, pinned=pinned)
            numbers[phase.name] = list(zip(draws, found, strict=True))
        return prepared._replace(numbers=numbers)


def _prepared(training: Training, indices: Tensor, rows: range, *, pinned: bool) -> _Prepared:
    pixels = training.pixels.index_select(0, indices)
    condition = None if training.conditions is None else training.conditions[indices]
    normal = posterior_numbers(training.codec, pixels, seed=training.run.seed, rows=rows, pinned=pinned)
    if pinned:
        pixels, condition = pixels.pin_memory(), None if condition is None else condition.pin_memory()
    return _Prepared(pixels, condition, {}, normal)


def _on_device(prepared: _Prepared, training: Training, rows: range, *, ranks: Ranks) -> StepData:
    """Start the copies, which do not wait for the device."""
    condition = prepared.condition
    normal = None if prepared.normal is None else prepared.normal.to(ranks.device, non_blocking=True)
    return StepData(
        images=images_of(training.codec, prepared.pixels.to(ranks.device, non_blocking=True), normal),
        condition=None if condition is None else condition.to(ranks.device, non_blocking=True),
        rows=rows,
        seed=training.run.seed,
        images_seen=rows.start - ranks.rank,
        controls=training.controls.values(),
        micro_batch=training.micro_batch,
        ahead=prepared.numbers,
        states=training.states,
        pictures=decoder_of(training.codec),
    )


def _use(device: torch.device) -> None:
    """Make a CUDA device this thread's; otherwise pinning would take memory of the first one, which `cuda` means."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
