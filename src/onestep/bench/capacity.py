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
    """Return the FLOP/s of the fastest of several products of large square float32, tf32 or bfloat16 matrices."""
    side = _SIDE[device.type]
    dtype = torch.bfloat16 if number_type == "bfloat16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    set_tf32(number_type == "tf32")
    best = min(timed(lambda: torch.matmul(left, right), device=device) for _ in range(_TRIES))
    set_tf32(False)
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
        Path("/proc/self/clear_refs").write_text("5")


def memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes in use and their peak: tensors on a CUDA device, or resident in this process under Linux."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    return _resident("VmRSS"), _resident("VmHWM")


def _resident(key: str) -> int:
    """Return a number of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0
