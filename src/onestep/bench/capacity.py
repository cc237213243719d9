"""Operation counts, the device's peak performance, memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from onestep.training.execution import set_tf32

_SIDE = {"cuda": 8192, "cpu": 1024}  # side of the square matrices that measure the peak
_TRIES = 20


def counted_flops(work: Callable[[], object]) -> int:
    """Return the FLOPs of products and convolutions in `work()`, two per multiply-add."""
    counter = FlopCounterMode(display=False)
    # Counts per module are not used, and their hooks fail in double backward (torch 2.12).
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        work()
    return counter.get_total_flops()


class _NoModules:
    """Replaces torch's module tracker: everything counts for the whole."""

    parents = frozenset({"Global"})

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def matmul_peak(device: torch.device, *, number_type: str) -> float:
    """Return the FLOP/s of the fastest of several products of large square matrices.

    Args:
        device: CPU or CUDA device.
        number_type: `float32`, `tf32` (of CUDA devices) or `bfloat16`.
    """
    side = _SIDE[device.type]
    dtype = torch.bfloat16 if number_type == "bfloat16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    set_tf32(number_type == "tf32")
    best = min(_seconds(left, right) for _ in range(_TRIES))
    set_tf32(False)
    return 2 * side**3 / best


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    settle(left.device)
    began = time.perf_counter()
    torch.matmul(left, right)
    settle(left.device)
    return time.perf_counter() - began


def settle(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class MemoryMeter:
    """Bytes in use and their peak since `reset`: of the CUDA device, or resident in this process under Linux."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def is_exact(self) -> bool:
        """Whether it counts tensors only, not memory that the process keeps after they are freed."""
        return self._device.type == "cuda"

    def reset(self) -> None:
        """Reset the peak to the bytes in use."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        # If the kernel does not allow it, the peak is that of the whole process.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def in_use(self) -> int:
        """Return the bytes in use."""
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else _resident("VmRSS")

    def peak(self) -> int:
        """Return the peak of bytes in use."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _resident("VmHWM")


def _resident(key: str) -> int:
    """Return a number of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0
