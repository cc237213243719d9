"""GPU memory and operations of a training's steps, by running them on tensors without storage: no GPU, little time.

Every tensor that a step makes is counted until it is freed, as by torch's allocator. Not counted are the CUDA
context, the workspace of cuDNN and cuBLAS and what the allocator cannot use again: see `onestep.training.footprint`.
Heads in bfloat16 are counted in float32.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onestep.coupling import Coupled
from onestep.objectives import Batch, Loss, Networks, Phase
from onestep.training.assembly import Training
from onestep.training.footprint import Divisible, Footprint, PhaseMemory
from onestep.training.nowhere import NOWHERE, Build, flop_counter, images_nowhere, only_trained, training_nowhere
from onestep.training.step import StepData, collect_gradients, settle_gradients

_ROWS = (8, 16)  # each a step without arithmetic; memory is linear in them


def footprint(build: Build, *, on_cuda: bool = True) -> Footprint:
    """Return the memory of the training that `build` returns with its networks as first-order phases call them.

    It is built and run on torch's device `meta` (see `NOWHERE`), with the fused attention of a GPU if `on_cuda`.

    Raises:
        Exception: As torch's: the run uses values of tensors, which have none here, or something that `build` raises.
    """
    live = _Live()
    with live, training_nowhere(build, on_cuda=on_cuda) as (training, wrapped):
        gc.collect()
        # The dataset is not on the GPU.
        apart = [each for each in (training.pixels, training.conditions) if isinstance(each, Tensor)]
        started = live.now - sum(each.untyped_storage().nbytes() for each in apart)
        averages = sum(_bytes(average.state().values()) for average in training.averages.values())
        trained = {role: each.parameters for role, each in training.optimizers.items()}
        moments = [[torch.empty_like(p) for p in each for _ in range(2)] for each in trained.values()]
        for parameter in (p for each in trained.values() for p in each):
            parameter.grad = torch.empty_like(parameter)
        gradients = {role: _bytes(each) for role, each in trained.items()}
        found = [_phases(training, wrapped, rows=rows, live=live) for rows in _ROWS]
        del moments
    first, second = found
    step = _ROWS[1] - _ROWS[0]
    phases = {}
    for phase in training.phases:
        one, other = first[phase.name], second[phase.name]
        per_image, saved = ((other[key] - one[key]) / step for key in ("peak", "saved"))
        phases[phase.name] = PhaseMemory(
            saved=saved,
            saved_fixed=one["saved"] - _ROWS[0] * saved,
            per_image=per_image,
            fixed=one["peak"] - _ROWS[0] * per_image,
            update=other["update"],
            gradients=gradients[phase.trains],
            is_divisible=training.families[phase.trains] == "networks",
        )
    return Footprint(
        weights=started - averages,
        averages=averages,
        moments=2 * sum(gradients.values()),
        gradients=sum(gradients.values()),
        phases=phases,
        flops={name: each["flops"] / _ROWS[1] for name, each in second.items()},
        every={phase.name: phase.every for phase in training.phases},
        divisible=_divisible(training, gradients=gradients),
    )


def _divisible(training: Training, *, gradients: Mapping[str, int]) -> Divisible:
    """Return what processes may share: see `onestep.training.sharding`."""
    denoisers = {role: each for role, each in training.networks.items() if training.families[role] == "networks"}
    if not denoisers:
        return Divisible()
    blocks = [
        _bytes(part.parameters())
        for network in denoisers.values()
        for part in network.modules()
        if hasattr(part, "recompute") and part is not network
    ]
    weights = sum(_bytes(network.parameters()) for network in denoisers.values())
    buffers = (pair for network in denoisers.values() for pair in network.named_buffers())
    own = sum(size for role, size in gradients.items() if role in denoisers)
    is_published = training.published in denoisers
    return Divisible(
        weights=weights,
        averages=sum(_bytes(each.state().values()) for each in training.averages.values()) if is_published else 0,
        moments=2 * own,
        gradients=own,
        copies=_bytes(buffer for name, buffer in buffers if name.endswith("_cast")),
        gathered=3 * max(blocks, default=0) + 2 * (weights - sum(blocks)),
    )


def _phases(training: Training, wrapped: Networks, *, rows: int, live: _Live) -> dict[str, dict[str, int]]:
    """Return the bytes and the operations of each phase in a step of `rows` images."""
    data, found = images_nowhere(training, rows=rows), {}
    own = {_key(t) for network in training.networks.values() for t in (*network.parameters(), *network.buffers())}
    for phase in training.phases:
        parameters = only_trained(training, phase)
        held, saved = live.now, _Saved(own)
        live.peak = live.now
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack), flop_counter() as counter:
            _gradients(training, wrapped, phase, data=data)
        peak = live.peak
        live.peak = live.now
        settle_gradients(parameters, ranks=NOWHERE)
        # The square roots of the second moments, by torch's foreach implementation.
        roots = [torch.empty_like(parameter) for parameter in parameters]
        # `held` lacks the gradients of this role, which are part of `Footprint.resident`.
        update = live.peak - held - _bytes(parameters)
        del roots
        found[phase.name] = {
            "peak": peak - held,
            "saved": saved.bytes,
            "update": update,
            "flops": counter.get_total_flops(),
        }
    return found


def _gradients(training: Training, wrapped: Networks, phase: Phase, *, data: StepData) -> None:
    collect_gradients(
        phase if phase.coupled is None else replace(phase, loss=functools.partial(_any_loss, phase.coupled)),
        networks=training.networks if phase.second_order else wrapped,
        batches=data.batches(phase.name),
        parameters=training.optimizers[phase.trains].parameters,
    )


def _any_loss(coupled: Coupled, networks: Networks, batch: Batch) -> Loss:
    """Return some loss of features, since memory and time of a coupled one itself are not counted."""
    found = [each.square().sum() for each in coupled.features(networks, batch).values()]
    return Loss(value=functools.reduce(torch.add, found))


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until these are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Saved:
    """Counts the bytes of the storages that are saved for a backward pass, without those of the networks."""

    def __init__(self, own: set[int]) -> None:
        self.bytes, self._known = 0, set(own)

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor once."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self._known.discard, storage._cdata)  # the address may come again
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        """Return it."""
        return tensor


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
