"""A run at full size with random weights on one device: gradients and updates of its phases, and steps of its loop.

All that these measurements use of the package's training is in this file, and their clock.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from onestep.bench.option_sets import option_set
from onestep.bench.random_run import random_training, random_wrapped, shape_of
from onestep.config.reading import read_experiment
from onestep.distributed import Ranks
from onestep.objectives import Networks
from onestep.training.ahead import data_of_steps, next_data
from onestep.training.assembly import Training
from onestep.training.loop import take_step
from onestep.training.step import set_training_mode, train_step

Result = TypeVar("Result")
_REPLAYS = 3  # a compiled network is compiled in its first step, recorded in its second and replayed in its third


def settle(device: torch.device) -> None:
    """Wait for all that was started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Return the seconds of `work()` with all that it starts on the device, and its result."""
    settle(device)
    began = time.perf_counter()
    found = work()
    settle(device)
    return time.perf_counter() - began, found


class Effect(NamedTuple):
    """What a phase does to its parameters: the loss, and for each parameter gradient and update, float64 on the CPU."""

    loss: float
    gradients: list[Tensor]
    updates: list[Tensor]


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A run under a set of options, of `rows` images a step."""

    training: Training
    wrapped: Networks
    ranks: Ranks

    @classmethod
    def build(cls, config: str, run: str, *, options: str, rows: int, device: torch.device) -> MeasuredRun:
        """Build a run of a config with the same random weights and pixels whatever the device and the options."""
        ranks, chosen = Ranks(rank=0, world=1, device=device), option_set(options)
        experiment = read_experiment(Path(config))
        shape = shape_of(experiment, run, given={})
        torch.manual_seed(0)
        training = random_training(experiment, run, options=chosen, shape=shape, batch=rows, ranks=ranks)
        set_training_mode(training.networks, phases=training.phases)
        return cls(training=training, wrapped=random_wrapped(training, options=chosen), ranks=ranks)

    def effects(self) -> Mapping[str, Effect]:
        """Return the effect of each phase on the same weights and images."""
        start = {role: copy.deepcopy(network.state_dict()) for role, network in self.training.networks.items()}
        data = next_data(self.training, images_seen=0, ranks=self.ranks)
        compiled = self.training.execution.networks
        found: dict[str, Effect] = {}
        with self.training.execution.computing():
            for phase in self.training.phases:
                parameters = self.training.optimizers[phase.trains].parameters
                for _ in range(_REPLAYS if compiled else 1):
                    for role, network in self.training.networks.items():
                        network.load_state_dict(start[role])
                    self.training.optimizers[phase.trains].torch.state.clear()
                    before = [_exact(each) for each in parameters]
                    self.training.execution.begin_step()
                    (report,) = train_step(
                        (phase,),
                        networks=self.training.networks,
                        wrapped=self.wrapped,
                        optimizers=self.training.optimizers,
                        data=data,
                        ranks=self.ranks,
                    )
                found[phase.name] = Effect(
                    float(report.loss),
                    [_exact(each.grad) for each in parameters if each.grad is not None],
                    [_exact(each) - old for each, old in zip(parameters, before, strict=True)],
                )
        return found

    def steps(self, numbers: range) -> None:
        """Take the steps of these numbers by the training loop itself, with all phases that are due."""
        with self.training.execution.computing(), data_of_steps(self.training, ranks=self.ranks) as data:
            for number in numbers:
                seen = number * self.training.run.batch
                take_step(self.training, images_seen=seen, ranks=self.ranks, wrapped=self.wrapped, data=data)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64, copy=True)


def comparison(one: Mapping[str, Effect], other: Mapping[str, Effect]) -> Iterator[tuple[str, float]]:
    """Yield what differs between the effects of two runs, of each phase.

    `gradient` is the cosine of all gradients, `parameter` the least cosine of one parameter among those that have a
    part of the gradient, `update` the cosine of the optimizer's updates, `error` the distance of the gradients and
    `loss` that of the losses, each relative to the first.
    """
    for phase, first in one.items():
        second = other[phase]
        flat, flat_other = (torch.cat([each.flatten() for each in effect.gradients]) for effect in (first, second))
        norm = float(flat.norm())
        yield f"{phase}.gradient", _cosine(flat, flat_other)
        shares = [
            _cosine(each.flatten(), counterpart.flatten())
            for each, counterpart in zip(first.gradients, second.gradients, strict=True)
            if float(each.norm()) > 1e-3 * norm
        ]
        yield f"{phase}.parameter", min(shares)
        updates = (torch.cat([each.flatten() for each in effect.updates]) for effect in (first, second))
        yield f"{phase}.update", _cosine(*updates)
        yield f"{phase}.error", float((flat - flat_other).norm()) / norm
        yield f"{phase}.loss", abs(first.loss - second.loss) / max(abs(first.loss), 1e-12)


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))
