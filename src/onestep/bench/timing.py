"""Measurements: the device's peak, memory, and the timing of a run under an option set, phase by phase."""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from onestep.arithmetic import products
from onestep.bench.option_sets import OptionSet
from onestep.bench.released import ReleasedAverage, released_phase
from onestep.distributed import Ranks
from onestep.objectives import Networks, Phase
from onestep.training.assembly import Training
from onestep.training.loop import next_data, update_averages
from onestep.training.nowhere import flop_counter
from onestep.training.step import StepData, set_training_mode, train_step

REST = "rest"
_SIDE = {"cuda": 8192, "cpu": 1024}  # side of the square matrices that measure the peak
_TRIES = 20


def matmul_peak(device: torch.device, *, number_type: str) -> float:
    """Return the FLOP/s of the fastest of several products of large square float32, tf32 or bfloat16 matrices."""
    side = _SIDE[device.type]
    dtype = torch.bfloat16 if number_type == "bfloat16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with products(tf32=number_type == "tf32"):
        best = min(timed(lambda: torch.matmul(left, right), device=device) for _ in range(_TRIES))
    return 2 * side**3 / best


def timed(work: Callable[[], object], *, device: torch.device) -> float:
    """Return the seconds of `work()` with all that it starts on the device."""
    settle(device)
    began = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - began


def settle(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Reset the peak of `memory` to the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # If the kernel does not allow it, the peak is that of the whole process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes in use and their peak: tensors on a CUDA device, or resident in this process under Linux."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    return _resident("VmRSS"), _resident("VmHWM")


def _resident(key: str) -> int:
    """Return a number of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0


def device_memory(device: torch.device) -> int:
    """Return the bytes of memory that a GPU has, or that processes may still get on a CPU under Linux."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 1 << 62  # unknown: no limit


def free(device: torch.device, *, compiled: bool) -> None:
    """Return the memory of what is no longer referenced to the device; `compiled`: that of all compiled code, too."""
    if compiled:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What remains of a contestant that is freed."""

    options: OptionSet
    batch: int
    peak: int


@dataclass(kw_only=True)
class Contestant:
    """A run under one option set and the seconds of its phases.

    Attributes:
        wrapped: The run's networks as first-order phases call them.
        resident: Bytes of these networks.
        peak: Peak memory during a step, in bytes; on CUDA without the other contestants' networks, on a CPU of the
            whole process.
        seconds: By phase, and for the rest (batch and averages), one number per round.
        average: The EMA in the released formulation, for a set that computes so.
    """

    options: OptionSet
    training: Training
    wrapped: Networks
    ranks: Ranks
    resident: int
    peak: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    average: ReleasedAverage | None = None

    def __post_init__(self) -> None:
        if self.options.as_released:
            self.average = ReleasedAverage(self.training.networks[self.training.published])

    def measured(self) -> Measured:
        """Return what a report needs."""
        return Measured(options=self.options, batch=self.training.run.batch, peak=self.peak)

    def count(self) -> dict[str, float]:
        """Return the floating-point operations of each phase, per image."""
        set_training_mode(self.training.networks, phases=self.training.phases)
        counts: dict[str, float] = {}

        def count(name: str, work: Callable[[], object]) -> None:
            with flop_counter() as counter:
                work()
            counts[name] = counter.get_total_flops() / self.training.run.batch

        self._step(count)
        return counts

    def work(self) -> float:
        """Return the floating-point operations of an average step, per image."""
        counts = self.count()
        return sum(counts[phase.name] / phase.every for phase in self.training.phases)

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

    def _step(self, measure: Callable[[str, Callable[[], object]], object]) -> None:
        training = self.training
        found: list[StepData] = []
        with training.execution.computing():
            measure(REST, lambda: found.append(next_data(training, images_seen=0, ranks=self.ranks)))
            for phase in training.phases:
                measure(phase.name, functools.partial(self._run, phase, found[0]))
            measure(REST, self._average)

    def _run(self, phase: Phase, data: StepData) -> None:
        training = self.training
        training.execution.begin_step()
        if self.options.as_released:
            networks = training.networks if phase.second_order else self.wrapped
            released_phase(training, phase, networks=networks, data=data)
            return
        train_step(
            (phase,),
            networks=training.networks,
            wrapped=self.wrapped,
            optimizers=training.optimizers,
            data=data,
            ranks=self.ranks,
        )

    def _average(self) -> None:
        if self.average is None:
            update_averages(self.training, images_seen=0)
        else:
            self.average.update(images_seen=0, run=self.training.run)

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


def paired_ratio(first: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> float:
    """Return the speedup of the other over the first: the median over rounds of the ratio within a round."""
    return statistics.median(sum(a.values()) / sum(b.values()) for a, b in zip(first, other, strict=True))
