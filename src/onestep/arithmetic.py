"""The arithmetic of networks: float32, TF32 or bfloat16, set for a block of code and recorded in the files made there.

Torch keeps it for the whole process, with TF32 convolutions by default on CUDA devices; nothing here outlasts a block.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["float32", "tf32", "bfloat16"]

ARITHMETIC = {"precision": str, "device": str}
"""The shape of a record of `record_of`."""


def default_device() -> torch.device:
    """Return the device of a single process that samples, extracts or observes: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_force(precision: Precision, *, device: torch.device) -> Precision:
    """Return what generators compute in where `precision` is requested: float32 on every device but CUDA's.

    So does the D2O reference with its half precision.
    """
    return precision if device.type == "cuda" else "float32"


def record_of(precision: Precision, *, device: torch.device) -> dict[str, str]:
    """Return the arithmetic in force as files hold it: `precision` and `device`.

    It is empty for float32 on a CPU, which files do not mention; nor did those of earlier versions, of any device.
    """
    if precision == "float32" and device.type == "cpu":
        return {}
    on_cuda = device.type == "cuda"
    return {"precision": precision, "device": torch.cuda.get_device_name(device) if on_cuda else device.type}


def entry(record: Mapping[str, Any] | None, *, key: str = "arithmetic") -> dict[str, Any]:
    """Return a record as an entry of a larger one, `{key: record}`; empty for an empty record."""
    return {key: dict(record)} if record else {}


@contextlib.contextmanager
def computing(precision: Precision, *, device: torch.device) -> Iterator[None]:
    """Compute matrix products and convolutions in `precision`, without gradients, inside the block.

    float32 is the precision of reported numbers. It disables TensorFloat-32, torch's default for convolutions on CUDA
    devices, and autocast. On a CPU tf32 is float32.
    """
    half = half_products(device, enabled=precision == "bfloat16")
    with products(tf32=precision != "float32"), torch.no_grad(), half:
        yield


def half_products(device: torch.device, *, enabled: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Return a block whose convolutions and matrix products are in bfloat16 by torch's autocast, or without autocast.

    A device that autocast lacks, such as `meta`, computes as it would outside.
    """
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


@contextlib.contextmanager
def dual_numbers() -> Iterator[None]:
    """Let tensors inside the block have tangents (`forward_ad.make_dual`), but no gradients.

    Raises:
        ValueError: Torch has no forward-mode derivative of an operation inside.
    """
    try:
        # `no_grad` affects backward only. Of torch's attention kernels only the plain one supports tangents.
        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        # Of GroupNorm in channels_last torch 2.12 reports a view that it cannot make.
        if not (isinstance(error, NotImplementedError) or "view size" in str(error)):
            raise
        found = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"r1_gradient: got forward_mode, and torch {torch.__version__} has no forward-mode derivative of an "
            f"operation of this discriminator ({found}). Fix: double_backward"
        ) from error


@contextlib.contextmanager
def products(*, tf32: bool) -> Iterator[None]:
    """Compute float32 products and convolutions with or without TF32 inside the block, whatever was set before."""
    backends = _backends()
    before, legacy = [each.fp32_precision for each in backends], _legacy()
    # Both of torch's interfaces, since each fails where only the other was used. One setting inherits from another.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    for each in backends:
        if not tf32 and each.fp32_precision not in ("none", "ieee"):
            each.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions, matrices = legacy
        if matrices is not None:
            torch.set_float32_matmul_precision(matrices)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for each, value in zip(backends, before, strict=True):
            if each.fp32_precision != value:
                each.fp32_precision = value


def _backends() -> tuple[Any, ...]:
    """Return the settings of torch that products and convolutions of float32 numbers follow."""
    backends: Any = torch.backends  # whose modules have attributes that type checkers do not see
    cuda, cudnn, cpu = backends.cuda, backends.cudnn, backends.mkldnn
    return cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv


def _legacy() -> tuple[bool | None, str | None]:
    """Return TF32 of convolutions and precision of products by torch's former interface; None if it refuses one."""
    convolutions = matrices = None
    with contextlib.suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    with contextlib.suppress(RuntimeError):
        matrices = torch.get_float32_matmul_precision()
    return convolutions, matrices


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use only algorithms of torch that give the same bytes in every call, inside the block, if it is `wanted`.

    ValueError: An operation inside has no such algorithm.
    """
    if not wanted:
        yield
        return
    # Read when CUDA's matrix library starts; torch refuses its products without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills, searches = memory.fill_uninitialized_memory, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    # No result reads uninitialized memory. A search may choose another algorithm in each process.
    memory.fill_uninitialized_memory, cudnn.benchmark = False, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        found = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"compile.deterministic: got true, but torch has no such algorithm: {found}. Fix: set false"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory, cudnn.benchmark = fills, searches
