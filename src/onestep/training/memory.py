"""GPU memory and operations of a training's steps, by running them on tensors without storage: no GPU, little time.

Every tensor that a step makes is counted until it is freed, as by torch's allocator. Not counted are the CUDA
context, the workspace of cuDNN and cuBLAS and what the allocator cannot use again: see `onestep.training.footprint`.
Heads in bfloat16 are counted in float32, since the device that has shapes and no numbers has no autocast.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from onestep.coupling import Coupled
from onestep.distributed import Ranks
from onestep.networks import _unet
from onestep.objectives import Batch, Loss, Networks, Phase
from onestep.training.assembly import Training
from onestep.training.footprint import Footprint, PhaseMemory
from onestep.training.optimizers import let_train
from onestep.training.step import StepData, collect_gradients, set_training_mode, settle_gradients

NOWHERE = Ranks(rank=0, world=1, device=torch.device("meta"))
"""The rank for which `build` composes a training."""

_ROWS = (8, 16)  # each a step without arithmetic; memory is linear in them


def footprint(build: Callable[[], tuple[Training, Networks]], *, on_cuda: bool = True) -> Footprint:
    """Return the memory of the training that `build` returns with its networks as first-order phases call them.

    It is built and run on torch's device `meta` (see `NOWHERE`), with the fused attention of a GPU if `on_cuda`.

    Raises:
        Exception: As torch's: the run uses values of tensors, which have none here, or something that `build` raises.
    """
    live = _Live()
    with live, _attention(fused=on_cuda), contextlib.ExitStack() as stack:
        with torch.device("meta"):
            training, wrapped = build()
        stack.enter_context(_autocast(casts=_casts(training)))
        set_training_mode(training.networks, phases=training.phases)
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
        )
    return Footprint(
        weights=started - averages,
        averages=averages,
        moments=2 * sum(gradients.values()),
        gradients=sum(gradients.values()),
        phases=phases,
        flops={name: each["flops"] / _ROWS[1] for name, each in second.items()},
        every={phase.name: phase.every for phase in training.phases},
    )


def _phases(training: Training, wrapped: Networks, *, rows: int, live: _Live) -> dict[str, dict[str, int]]:
    """Return the bytes and the operations of each phase in a step of `rows` images."""
    data, found = _data(training, rows=rows), {}
    own = {_key(t) for network in training.networks.values() for t in (*network.parameters(), *network.buffers())}
    for phase in training.phases:
        parameters = _only(training, phase)
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


def flop_counter() -> FlopCounterMode:
    """Return a counter of the operations of products and convolutions, also in gradients of gradients."""
    counter = FlopCounterMode(display=False)
    # Counts per module are not used, and their hooks fail in double backward (torch 2.12).
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules:
    """Replaces torch's module tracker: everything counts for the whole."""

    parents = frozenset({"Global"})

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _only(training: Training, phase: Phase) -> list[nn.Parameter]:
    """Let gradients reach the parameters that a phase trains only, without one so far, as a step does; return them."""
    let_train(phase.trains, training.optimizers)
    parameters = training.optimizers[phase.trains].parameters
    for parameter in parameters:
        parameter.grad = None
    return parameters


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


def _data(training: Training, *, rows: int) -> StepData:
    conditions = training.conditions
    return StepData(
        images=training.codec.encode(torch.zeros(rows, *training.pixels.shape[1:], dtype=torch.uint8, device="meta")),
        condition=None if conditions is None else conditions[torch.zeros(rows, dtype=torch.long, device="meta")],
        rows=range(rows),
        seed=training.run.seed,
        images_seen=0,
        controls=training.controls.values(),
    )


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


def _casts(training: Training) -> bool:
    """Return whether a network needs torch's autocast; those that cast their own weights do not."""
    return any(
        training.families[role] in training.execution.bfloat16 and not getattr(network, "casts_weights", False)
        for role, network in training.networks.items()
    )


@contextlib.contextmanager
def _autocast(*, casts: bool) -> Iterator[None]:
    """Let torch's autocast be allowed on the device `meta`, and have an effect there if `casts`; that takes time."""
    mode, plain = _Autocast(), torch.autocast
    torch.autocast = mode.region  # type: ignore[assignment, misc]
    try:
        with mode if casts else contextlib.nullcontext():
            yield
    finally:
        torch.autocast = plain  # type: ignore[misc]


class _Autocast(TorchFunctionMode):
    """Casts the inputs of convolutions and matrix products, within a region of autocast or where weights are cast."""

    _products = (torch.conv2d, torch.conv_transpose2d, F.linear)
    _float32 = (F.layer_norm, F.group_norm)

    def __init__(self) -> None:
        super().__init__()
        self._types: list[torch.dtype] = [torch.float32]

    @contextlib.contextmanager
    def region(self, device_type: str, dtype: torch.dtype = torch.bfloat16, enabled: bool = True, **_: Any) -> Any:
        """Replace `torch.autocast`."""
        self._types.append(dtype if enabled else torch.float32)
        try:
            yield
        finally:
            self._types.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._products and len(args) > 1:
            half = {each.dtype for each in args[:2]} & {torch.bfloat16}
            kind = torch.bfloat16 if half else self._types[-1]
            args = [each.to(kind) if isinstance(each, Tensor) else each for each in args]
        elif func in self._float32:
            args = [args[0].float(), *args[1:]]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _attention(*, fused: bool) -> Iterator[None]:
    """Let attention hold what the fused kernel of a GPU holds, although tensors without storage are not on one."""
    plain = _unet.plain_attention
    if fused:
        _unet.plain_attention = _FusedAttention.apply
    try:
        yield
    finally:
        _unet.plain_attention = plain


class _FusedAttention(torch.autograd.Function):
    """Holds queries, keys, values, the result and one number per row; the products are for the counter."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        inputs = [each.contiguous() for each in (query, key, value)]
        mixed = value @ (query.transpose(2, 3) @ key).transpose(2, 3)
        ctx.save_for_backward(*inputs, mixed, query.new_empty(*query.shape[:2], query.shape[3], dtype=torch.float32))
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        weights, along = query.transpose(2, 3) @ key, gradients[0].transpose(2, 3) @ value
        return key @ along.transpose(2, 3), query @ along, gradients[0] @ weights
