"""A training on torch's device `meta`: whole steps on tensors that have shapes and no numbers, and so take no time.

`onestep.training.memory` counts the bytes of such steps, `onestep.training.work` their operations. Heads in bfloat16
stay in float32, since torch has no autocast for this device.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from onestep.distributed import Ranks
from onestep.networks import _unet
from onestep.objectives import Networks, Phase
from onestep.training.assembly import Training
from onestep.training.latents import decoder_of, images_of
from onestep.training.optimizers import let_train
from onestep.training.step import StepData, set_training_mode

NOWHERE = Ranks(rank=0, world=1, device=torch.device("meta"))
"""The rank for which a training without numbers is composed."""

Build = Callable[[], tuple[Training, Networks]]
"""Makes a training for `NOWHERE`, and its networks as first-order phases call them."""


@contextlib.contextmanager
def training_nowhere(build: Build, *, on_cuda: bool = True) -> Iterator[tuple[Training, Networks]]:
    """Yield a training on the device `meta` with its networks in their modes, within whose block its steps can run.

    Attention holds what the fused kernel of a GPU does if `on_cuda`.

    Raises:
        Exception: As torch's: the run uses values of tensors, which have none here, or something that `build` raises.
    """
    with _attention(fused=on_cuda), contextlib.ExitStack() as stack:
        with torch.device("meta"):
            training, wrapped = build()
        stack.enter_context(_autocast(casts=_casts(training)))
        set_training_mode(training.networks, phases=training.phases)
        yield training, wrapped


def images_nowhere(training: Training, *, rows: int, micro_batch: int | None = None) -> StepData:
    """Return the images of a step, of `rows` of them."""
    conditions, kind = training.conditions, training.pixels.dtype
    stored = torch.zeros(rows, *training.pixels.shape[1:], dtype=kind, device="meta")
    return StepData(
        images=images_of(training.codec, stored, None),
        condition=None if conditions is None else conditions[torch.zeros(rows, dtype=torch.long, device="meta")],
        rows=range(rows),
        seed=training.run.seed,
        images_seen=0,
        controls=training.controls.values(),
        micro_batch=micro_batch,
        states=dict(training.states),
        pictures=decoder_of(training.codec),
    )


def only_trained(training: Training, phase: Phase) -> list[nn.Parameter]:
    """Let gradients reach the parameters that a phase trains only, without one so far, as a step does; return them."""
    let_train(phase.trains, training.optimizers)
    parameters = training.optimizers[phase.trains].parameters
    for parameter in parameters:
        parameter.grad = None
    return parameters


def flop_counter() -> FlopCounterMode:
    """Return a counter of floating-point operations, also in gradients of gradients: two for each multiply-add.

    Counted are products of matrices, convolutions, attention, and decompositions of symmetric matrices (9 D^3 with
    eigenvectors, 4/3 D^3 without: Golub and Van Loan, Matrix Computations, section 8.3). A convolution of weights
    [O, I, k, k] has 2 O I k^2 for each image and place, wherever the padding reaches, and each of its two gradients as
    many; I is that of one group. Not counted is what goes through the elements of a tensor, such as activations.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_COUNTED)
    # Counts per module are not used, and their hooks fail in double backward (torch 2.12).
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


def _of_convolution_backward(
    slope: Tensor, images: Tensor, weight: Tensor, *options: Any, out_val: Any = None, **_: Any
) -> int:
    """Differs from torch's: the gradient of weights in groups has as many operations as the convolution itself."""
    transposed, wanted = options[4], options[7]
    places = (images if transposed else slope).shape[2:]
    return 2 * weight.numel() * len(images) * math.prod(places) * sum(wanted[:2])


def _of_eigenvalues(matrix: Tensor, *options: Any, out_val: Any = None, **named: Any) -> int:
    *batch, side, _ = matrix.shape
    with_vectors = named.get("compute_v", options[1] if len(options) > 1 else True)
    return round(math.prod(batch) * side**3 * (9 if with_vectors else 4 / 3))


def _of_vector(matrix: Tensor, vector: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * matrix.numel()


for _count in (_of_convolution_backward, _of_eigenvalues, _of_vector):
    setattr(_count, "_get_raw", True)  # noqa: B010  # torch's mark for functions of tensors, not of shapes

_COUNTED = {
    torch.ops.aten.convolution_backward: _of_convolution_backward,
    torch.ops.aten._linalg_eigh: _of_eigenvalues,
    torch.ops.aten.mv: _of_vector,
}


class _NoModules:
    """Replaces torch's module tracker: everything counts for the whole."""

    parents = frozenset({"Global"})

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        pass


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
