"""A GPU without numbers: torch's `meta` device, with what CUDA refuses and meta does not.

Operations compute shapes, types and devices only, so networks of full size take no memory. A tensor of another device
in an operation is an error, and so are number types that a convolution or product does not mix. Numbers that a program
reads are zero, single truths are false, and those of a copied tensor true, as `isfinite` has them. Autocast, which
torch has for real devices only, is imitated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

META = torch.device("meta")
_aten = torch.ops.aten

# Copies from one device to another, and reads by indices that may be on the CPU also on CUDA.
_CROSSING = (_aten._to_copy, _aten.copy_, _aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
_OF_ONE_TYPE = (
    _aten.convolution,
    _aten.convolution_backward,
    _aten.mm,
    _aten.bmm,
    _aten.addmm,
    _aten.baddbmm,
    _aten.mv,
)
# By autocast on CUDA: https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior
_HALF = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "einsum", "scaled_dot_product_attention"),
    *("matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addbmm", "baddbmm"),
}
_SINGLE = {
    *("softmax", "log_softmax", "layer_norm", "group_norm", "norm", "normalize", "cosine_similarity"),
    *("exp", "log", "pow", "__pow__", "__rpow__", "rsqrt", "reciprocal", "__rtruediv__", "softplus"),
    *("sum", "prod", "cumsum", "mse_loss", "cross_entropy", "nll_loss"),
}


class _Device(TorchDispatchMode):
    """Refuses what CUDA refuses, and reads zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if not any(each.is_meta for each in tensors):
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is _aten._local_scalar_dense:
            return torch.zeros((), dtype=args[0].dtype).item()
        if packet is _aten.equal:
            return True
        if packet is _aten._to_copy and torch.device(kwargs.get("device") or META).type == "cpu":
            return _read(args[0]).to(kwargs.get("dtype") or args[0].dtype)
        if packet is _aten.copy_ and not args[0].is_meta:
            return args[0].copy_(_read(args[1]))
        strays = [each for each in tensors if not each.is_meta and each.ndim > 0]
        if strays and packet not in _CROSSING:
            raise RuntimeError(f"{packet}: got tensors of the CPU, {[list(e.shape) for e in strays]}, and of the GPU")
        kinds = {each.dtype for each in tensors if each.is_floating_point()}
        if packet in _OF_ONE_TYPE and len(kinds) > 1:
            raise RuntimeError(f"{packet}: got the types {sorted(map(str, kinds))}, expected one")
        return func(*args, **kwargs)


def _read(tensor: Tensor) -> Tensor:
    made = torch.ones if tensor.dtype == torch.bool else torch.zeros
    return made(tensor.shape, dtype=tensor.dtype)


class _Casting(TorchFunctionMode):
    """Autocast on the meta device; off with None."""

    dtype: torch.dtype | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        target = (
            None if self.dtype is None else self.dtype if name in _HALF else torch.float32 if name in _SINGLE else None
        )
        if target is not None:
            args, kwargs = tree_map(lambda each: _cast(each, target), (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    is_cast = isinstance(value, Tensor) and value.is_meta and value.dtype in (torch.float32, torch.bfloat16)
    return value.to(dtype) if is_cast else value


@contextlib.contextmanager
def meta_device() -> Iterator[torch.device]:
    """Let the meta device be a GPU inside the block, and yield it."""
    casting, real = _Casting(), torch.autocast

    @contextlib.contextmanager
    def autocast(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True) -> Iterator[None]:
        if device_type != "meta":
            with real(device_type, dtype=dtype, enabled=enabled):
                yield
            return
        outside, casting.dtype = casting.dtype, dtype if enabled else None
        try:
            yield
        finally:
            casting.dtype = outside

    with pytest.MonkeyPatch.context() as patch, casting, _Device():
        patch.setattr(torch, "autocast", autocast)
        patch.setattr(torch.amp, "is_autocast_available", lambda device_type: True)
        yield META
