"""Paired timing of a run under several option sets: one step of each in turn, phase by phase, in one process."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from onestep.bench.capacity import counted_flops, memory, reset_peak, settle, timed
from onestep.bench.option_sets import OptionSet
from onestep.distributed import Ranks
from onestep.objectives import Networks, Phase
from onestep.training.assembly import Training
from onestep.training.execution import set_tf32
from onestep.training.loop import next_data, update_averages
from onestep.training.step import StepData, set_training_mode, train_step

REST = "rest"


@dataclass(kw_only=True)
class Contestant:
    """A run under one option set and the seconds of its phases.

    Attributes:
        wrapped: The run's networks as first-order phases call them.
        resident: Bytes of these networks.
        peak: Peak memory during a step, in bytes; on CUDA without the other contestants' networks, on a CPU of the
            whole process.
        seconds: By phase, and for the rest (batch and averages), one number per round.
    """

    options: OptionSet
    training: Training
    wrapped: Networks
    ranks: Ranks
    resident: int
    peak: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def warm_up(self, *, steps: int) -> None:
        """Take untimed steps: kernels are selected or compiled, and memory is allocated."""
        set_training_mode(self.training.networks, phases=self.training.phases)
        device = self.ranks.device
        # A process keeps memory after tensors are freed, so on a CPU the others' share is unknown.
        others = max(0, memory(device)[0] - self.resident) if device.type == "cuda" else 0
        reset_peak(device)
        for _ in range(steps):
            self._step(lambda name, work: work())
        settle(device)
        self.peak = memory(device)[1] - others

    def time_a_step(self) -> None:
        """Time each phase of one step that has all of them."""
        device = self.ranks.device
        self._step(lambda name, work: self.seconds.setdefault(name, []).append(timed(work, device=device)))

    def count(self) -> dict[str, int]:
        """Return the floating-point operations of each phase."""
        set_training_mode(self.training.networks, phases=self.training.phases)
        counts: dict[str, int] = {}
        self._step(lambda name, work: counts.update({name: counted_flops(work)}))
        return counts

    def _step(self, measure: Callable[[str, Callable[[], object]], object]) -> None:
        training = self.training
        set_tf32(training.execution.tf32)
        found: list[StepData] = []
        measure(REST, lambda: found.append(next_data(training, images_seen=0, ranks=self.ranks)))
        for phase in training.phases:
            measure(phase.name, functools.partial(self._run, phase, found[0]))
        measure(REST, lambda: update_averages(training, images_seen=0))
        set_tf32(False)

    def _run(self, phase: Phase, data: StepData) -> None:
        self.training.execution.begin_step()
        train_step(
            (phase,),
            networks=self.training.networks,
            wrapped=self.wrapped,
            optimizers=self.training.optimizers,
            data=data,
            ranks=self.ranks,
        )

    def per_step(self) -> list[dict[str, float]]:
        """Return the seconds of an average step by phase, per round; a phase is weighted by how often it is due."""
        every = {phase.name: phase.every for phase in self.training.phases}
        # Two entries per round: the batch before the phases, and the averages after them.
        rest = self.seconds[REST]
        rounds = [dict(zip(every, each, strict=True)) for each in zip(*(self.seconds[p] for p in every), strict=True)]
        return [
            {name: value / every[name] for name, value in each.items()} | {REST: rest[2 * i] + rest[2 * i + 1]}
            for i, each in enumerate(rounds)
        ]


def race(contestants: Sequence[Contestant], *, rounds: int) -> None:
    """Time `rounds` steps of each in turn, so that other load on the machine affects all of them alike."""
    for _ in range(rounds):
        for contestant in contestants:
            contestant.time_a_step()


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median over rounds of each phase's seconds."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def paired_ratio(first: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> float:
    """Return the speedup of the other over the first: the median over rounds of the ratio within a round."""
    return statistics.median(sum(a.values()) / sum(b.values()) for a, b in zip(first, other, strict=True))
