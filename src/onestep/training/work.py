"""What a training computes for each image, counted by a step without numbers: floating-point operations and passes.

A pass is that of one image through a network, forward or backward, whatever the size of the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onestep import components
from onestep.coupling import Coupled, CoupledLoss, Start, Vectors
from onestep.objectives import Networks, Phase
from onestep.training.assembly import Training
from onestep.training.coupled import coupled_gradients
from onestep.training.nowhere import (
    NOWHERE,
    Build,
    flop_counter,
    images_nowhere,
    only_trained,
    training_nowhere,
)
from onestep.training.step import StepData, collect_gradients

_START_ROWS = 64  # images of a call before the first step, whose operations are taken for all
_KINDS = {"networks": "denoiser", "discriminators": "critic", "ratios": "critic", "classifiers": "classifier"}
_ENCODER = 0.5  # of a pass through a denoiser, where its inner maps alone are computed


@dataclass(frozen=True, kw_only=True)
class PhaseWork:
    """One phase, for each image of a step.

    Attributes:
        every: Steps from one use of the phase to the next.
        flops: Floating-point operations; see `onestep.training.nowhere.flop_counter`.
        passes: By `ROLE.forward` and `ROLE.backward`, images through that network; `ROLE.encoder.forward` of those of
            which it computes inner maps alone, `ROLE.features.forward` of the frozen part of a discriminator. A
            backward pass is one that reaches what a forward pass returned.
        units: By kind of network, `denoiser`, `critic`, `features`, `classifier`: passes in units of a forward pass.
            Backward is 2 to the parameters of a network, 1 to its input alone; an encoder is half its denoiser.
    """

    every: int
    flops: float
    passes: Mapping[str, float]
    units: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a training computes.

    Attributes:
        batch: Images of a step, over all processes.
        processes: GPUs, each of which computes a coupled loss of all images of a step.
        phases: By name.
        start: Floating-point operations before the first step, such as features of the dataset.
    """

    batch: int
    processes: int
    phases: Mapping[str, PhaseWork]
    start: float

    @property
    def flops(self) -> float:
        """Floating-point operations of an average step, per image."""
        return sum(phase.flops / phase.every for phase in self.phases.values())

    @property
    def units(self) -> dict[str, float]:
        """Units of passes of an average step, per image, by kind of network."""
        total: dict[str, float] = {}
        for phase in self.phases.values():
            for kind, count in phase.units.items():
                total[kind] = total.get(kind, 0.0) + count / phase.every
        return dict(sorted(total.items()))


def work(build: Build, *, images: int, processes: int = 1, micro_batch: int | None = None) -> Work:
    """Return what the training that `build` composes computes, without numbers; see `training_nowhere`.

    Args:
        build: Makes the training.
        images: Of the dataset.
        processes: GPUs of the training; with several, a coupled loss needs two passes.
        micro_batch: Most images of a process that pass through the networks at once; None for all.

    Raises:
        Exception: As torch's: the run uses values of tensors, which have none here, or something that `build` raises.
    """
    with training_nowhere(build, on_cuda=False) as (training, wrapped):
        batch = training.run.batch
        rows = min(batch // processes, micro_batch or batch)
        data, start = images_nowhere(training, rows=batch), 0.0
        halves = images_nowhere(training, rows=batch, micro_batch=rows)
        found: dict[str, PhaseWork] = {}
        for phase in training.phases:
            chosen = data
            if phase.coupled is not None:
                begun, operations = _begun(training, wrapped, phase, coupled=phase.coupled, images=images)
                start += operations
                chosen = replace(halves, states={phase.name: begun})
            found[phase.name] = _phase(training, wrapped, phase, data=chosen, processes=processes)
    return Work(batch=batch, processes=processes, phases=found, start=start)


def _phase(training: Training, wrapped: Networks, phase: Phase, *, data: StepData, processes: int) -> PhaseWork:
    """Return the work of a phase in a step of the images of `data`."""
    parameters, tally = only_trained(training, phase), _Tally()
    networks = training.networks if phase.second_order else wrapped
    counted = {
        role: _Counted(networks[role], role=role, family=family, tally=tally)
        for role, family in training.families.items()
    }
    loss = None if phase.coupled is None else _Remembered(phase.coupled)
    with flop_counter() as counter, _reads():
        if loss is None:
            collect_gradients(phase, networks=counted, batches=data.batches(phase.name), parameters=parameters)
        else:
            seen = replace(phase, coupled=loss.coupled)
            coupled_gradients(seen, networks=counted, data=data, parameters=parameters, ranks=NOWHERE)
    rows = len(data.rows)
    flops = counter.get_total_flops() / rows
    flops += 0 if loss is None else (processes - 1) * loss.operations() / rows
    passes = {key: count / rows for key, count in sorted(tally.counts.items())}
    for role, count in _spared(training).get(phase.name, {}).items():
        flops -= count * tally.flops[role]
        passes[f"{role}.forward"] -= count
    kinds = _kinds(training, encoders=tally.encoders)
    units: dict[str, float] = {}
    for key, count in passes.items():
        kind, weight = _unit(key, kinds=kinds, trains=phase.trains)
        units[kind] = units.get(kind, 0.0) + weight * count
    return PhaseWork(every=phase.every, flops=flops, passes=passes, units=dict(sorted(units.items())))


def _spared(training: Training) -> Mapping[str, Mapping[str, float]]:
    """Return the forward passes of each phase, by role, that values spare; see `onestep.objectives.Objective`."""
    spared = getattr(components.build("objectives", training.run.objective), "spared", None)
    return {} if spared is None else spared()


def _kinds(training: Training, *, encoders: set[str]) -> dict[str, str]:
    """Return the kind of each network by role, and of frozen parts of discriminators by `ROLE.features`."""
    origins = components.build("objectives", training.run.objective).networks()
    families = {role: getattr(origins[role], "family", family) for role, family in training.families.items()}
    kinds = {role: _KINDS.get(family, "features") for role, family in families.items()}
    return kinds | {f"{role}.features": "encoder" if role in encoders else "features" for role in kinds}


def _unit(key: str, *, kinds: Mapping[str, str], trains: str) -> tuple[str, float]:
    """Return the kind of the network of a pass, and the units of the pass."""
    name, _, direction = key.rpartition(".")
    role, _, part = name.partition(".")
    kind = "encoder" if part == "encoder" else kinds[name]
    weight = 2.0 if direction == "backward" and trains == role and part != "features" else 1.0
    return ("denoiser", weight * _ENCODER) if kind == "encoder" else (kind, weight)


class _Tally:
    """Counts images by pass.

    Attributes:
        flops: Operations of a forward pass, by role.
        encoders: Discriminators whose frozen part is the encoder of a denoiser.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.flops: dict[str, float] = {}
        self.encoders: set[str] = set()

    def add(self, name: str, images: int, made: Any) -> None:
        """Count a forward pass, and each backward pass that will reach one of the tensors that it made."""
        self.counts[f"{name}.forward"] += images
        reached = [each for each in tree_leaves(made) if isinstance(each, Tensor) and each.requires_grad]
        if reached and torch.is_grad_enabled():

            def count(_: Tensor) -> None:
                self.counts[f"{name}.backward"] += images

            register_multi_grad_hook(reached, count, mode="any")


class _Counted:
    """A network as an objective calls it, each call of which a tally counts."""

    def __init__(self, network: Any, *, role: str, family: str, tally: _Tally) -> None:
        self._network, self._role, self._family, self._tally = network, role, family, tally
        if family == "discriminators" and getattr(network, "chosen", None) is not None:
            tally.encoders.add(role)

    def __call__(self, *given: Any, **options: Any) -> Any:
        if self._family == "discriminators":
            images, *others = given
            return self.heads(self.frozen_features(images), *(others or (None,)), **options)
        with flop_counter() as counter:
            made = self._network(*given, **options)
        if given and self._family != "pairs":
            name = f"{self._role}.encoder" if options.get("maps") == "only" else self._role
            self._tally.add(name, len(given[0]), made)
            self._tally.flops[name] = counter.get_total_flops() / len(given[0])
        return made

    def frozen_features(self, images: Tensor) -> Any:
        """Call the frozen part of a discriminator."""
        made = self._network.frozen_features(images)
        self._tally.add(f"{self._role}.features", len(images), made)
        return made

    def heads(self, features: Any, condition: Tensor | None = None) -> Tensor:
        """Call the heads of a discriminator."""
        made: Tensor = self._network.heads(features, condition)
        self._tally.add(self._role, len(made), made)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def _begun(
    training: Training, networks: Networks, phase: Phase, *, coupled: Coupled, images: int
) -> tuple[Mapping[str, Tensor], float]:
    """Return the state of a coupled loss at the start of a run, and the operations that make it."""
    collected = 0.0
    (batch,) = images_nowhere(training, rows=_START_ROWS).batches(phase.name)

    def collect(function: Callable[[Networks, Any], Vectors], *, images: int, stream: str) -> Vectors:
        nonlocal collected
        with flop_counter() as counter:
            found = function(networks, batch)
        # What `counter` holds is part of the whole count: here is added what the other images need.
        collected += counter.get_total_flops() * (images / _START_ROWS - 1)
        return {name: each.new_empty(images, *each.shape[1:]) for name, each in found.items()}

    with torch.no_grad(), flop_counter() as counter, _reads():
        state = coupled.start(Start(images=images, batch=training.run.batch, collect=collect))
    return {name: each.to("meta") for name, each in state.items()}, counter.get_total_flops() + collected


class _Remembered:
    """A coupled loss that remembers the features it was given, to count the operations of the loss alone."""

    def __init__(self, coupled: Coupled) -> None:
        self._loss = coupled.loss
        self._given: tuple[Vectors, Mapping[str, Tensor]] | None = None
        self.coupled = replace(coupled, loss=self._remember)

    def _remember(self, features: Vectors, state: Mapping[str, Tensor]) -> CoupledLoss:
        self._given = features, state
        return self._loss(features, state)

    def operations(self) -> int:
        """Return the operations of the loss and its gradient with respect to the features."""
        assert self._given is not None, "a loss that has been computed"
        features, state = self._given
        leaves = {name: each.detach().requires_grad_() for name, each in features.items()}
        with flop_counter() as counter, _reads():
            found = self._loss(leaves, state)
            torch.autograd.grad(found.value, list(leaves.values()), materialize_grads=True)
        return counter.get_total_flops()


@contextmanager
def _reads() -> Iterator[None]:
    """Let numbers of tensors without any be read: as 1, a single truth as false, a copied tensor of truths as true."""
    with _Ones():
        yield


class _Ones(TorchDispatchMode):
    """Answers reads of tensors on the device `meta`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        if packet is torch.ops.aten._local_scalar_dense and args[0].is_meta:
            return {torch.bool: False}.get(args[0].dtype, 1)
        to = kwargs.get("device")
        if packet is torch.ops.aten._to_copy and args[0].is_meta and to is not None and torch.device(to).type == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)
