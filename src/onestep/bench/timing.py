"""Paired times of a run under several option sets: a step of each in turn, phase by phase, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from onestep.bench.capacity import MemoryMeter, counted_flops, settle
from onestep.bench.option_sets import OptionSet
from onestep.distributed import Ranks
from onestep.objectives import Phase, Players
from onestep.training.loop import Training, next_batches
from onestep.training.speed import set_tf32
from onestep.training.step import modules_in_training_mode, train_step

REST = "rest"


@dataclass(kw_only=True)
class Contestant:
    """A run under one option set, and the seconds that its phases took.

    Attributes:
        options: The set.
        training: The run.
        views: Its networks as phases of first order see them.
        ranks: This process.
        resident: Bytes that its networks take.
        peak: Most bytes in use during a step; on a CUDA device without what other contestants keep there, on a CPU
            those of the whole process.
        seconds: By phase, and for the rest (batch and average), one number a round.
    """

    options: OptionSet
    training: Training
    views: Players
    ranks: Ranks
    resident: int
    peak: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def warm_up(self, *, steps: int) -> None:
        """Take steps that are not timed: kernels are chosen or compiled, and memory is taken."""
        modules_in_training_mode(self.training.players)
        meter = MemoryMeter(self.ranks.device)
        others = max(0, meter.in_use() - self.resident) if meter.is_exact else 0
        meter.reset()
        for _ in range(steps):
            self._step(lambda name, work: work())
        settle(self.ranks.device)
        self.peak = meter.peak() - others

    def time_a_step(self) -> None:
        """Take a step with every phase in it and note what each took."""
        self._step(lambda name, work: self.seconds.setdefault(name, []).append(self._timed(work)))

    def count(self) -> dict[str, int]:
        """Return the floating-point operations of each phase."""
        modules_in_training_mode(self.training.players)
        counts: dict[str, int] = {}
        self._step(lambda name, work: counts.update({name: counted_flops(work)}))
        return counts

    def _step(self, do: Callable[[str, Callable[[], object]], object]) -> None:
        training, ranks = self.training, self.ranks
        set_tf32(training.speed.tf32)
        found = {}
        do(REST, lambda: found.update(batches=next_batches(training, images_seen=0, ranks=ranks)))
        for phase in training.phases:
            do(phase.name, lambda phase=phase: self._run(phase, found["batches"]))
        do(REST, lambda: [each.update(images_seen=0, batch=training.batch) for each in training.averages.values()])
        set_tf32(False)

    def _run(self, phase: Phase, batches: Callable) -> None:
        self.training.speed.begin_step()
        train_step(
            (phase,),
            players=self.training.players,
            views=self.views,
            optimizers=self.training.optimizers,
            passes_for=batches,
            ranks=self.ranks,
        )

    def _timed(self, work: Callable[[], object]) -> float:
        settle(self.ranks.device)
        began = time.perf_counter()
        work()
        settle(self.ranks.device)
        return time.perf_counter() - began

    def per_step(self) -> list[dict[str, float]]:
        """Return for each round the seconds of an average step by phase; a lazy phase counts by how often it is due."""
        every = {phase.name: phase.every for phase in self.training.phases}
        # Two entries a round: the batch before the phases, and the average after them.
        rest = self.seconds[REST]
        rounds = [dict(zip(every, each, strict=True)) for each in zip(*(self.seconds[p] for p in every), strict=True)]
        return [
            {name: value / every[name] for name, value in each.items()} | {REST: rest[2 * i] + rest[2 * i + 1]}
            for i, each in enumerate(rounds)
        ]


def race(contestants: Sequence[Contestant], *, rounds: int) -> None:
    """Time `rounds` steps of each, taking turns, so that whatever else the machine does meets all of them."""
    for _ in range(rounds):
        for contestant in contestants:
            contestant.time_a_step()


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median over rounds of each phase's seconds."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def paired_ratio(first: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> float:
    """Return how many times as fast as the first the other is: the median over rounds of the ratio of a round."""
    return statistics.median(sum(a.values()) / sum(b.values()) for a, b in zip(first, other, strict=True))
