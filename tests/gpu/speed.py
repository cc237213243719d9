"""Part 2: the training loop itself, with everything that the host does between kernels."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

from gpu.correctness import REPOSITORY
from gpu.measured_run import MeasuredRun, settle, timed
from gpu.runner import failure

Found = Iterator[dict[str, float | str]]
_WARM_UP = 4  # steps, and one with the regularizer
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def loop(
    device: torch.device,
    *,
    run: str,
    sets: str,
    rows: int,
    steps: int = 16,
    cudnn_benchmark: bool = False,
    config: str = "config.yaml",
) -> Found:
    """Time steps of the loop; 16 of them have the regularizer of every 16th as often as a training has.

    `kernels`, `waits` (calls that block the host until the device is done) and `busy` (share of the time in which a
    kernel runs) are those of three steps without the regularizer.
    """
    torch.backends.cudnn.benchmark = cudnn_benchmark
    measured = MeasuredRun.build(config, run, options=sets, rows=rows, device=device)
    on_gpu = device.type == "cuda"
    warm_up, _ = timed(lambda: [measured.steps(each) for each in (range(1, 1 + _WARM_UP), range(16, 17))], device)
    yield {"warm_up_seconds": warm_up}
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(lambda: measured.steps(range(17, 17 + steps)), device)[0] / steps
    yield {"images_per_second": rows / seconds, "milliseconds": 1e3 * seconds}
    if not on_gpu:
        return
    yield {"memory_mib": torch.cuda.max_memory_allocated() / 2**20}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        measured.steps(range(33, 36))
        settle(device)
    events = seen.events() or []
    kernels = [each for each in events if each.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(each.time_range.elapsed_us() for each in kernels) / 3e6
    waits = sum(each.name in _WAITS for each in events) - 1  # the last is our own
    yield {"kernels": len(kernels) / 3, "busy": busy / seconds, "waits": waits / 3}


def runs(
    device: torch.device, *, runs: Mapping[str, int], sets: str = "ours", steps: int = 6, config: str = "config.yaml"
) -> Found:
    """Time a few steps of each of several runs, given with their rows; one that fails is a finding of its own."""
    for run, rows in runs.items():
        try:
            yield {f"{run}.{name}": value for name, value in _rate(device, run, rows, sets, steps, config).items()}
        except Exception as error:  # of the device, or of memory
            yield {f"{run}.outcome": failure(error)}
        gc.collect()  # what is left of it would count in the memory of the next


def _rate(device: torch.device, run: str, rows: int, sets: str, steps: int, config: str) -> dict[str, float]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    measured = MeasuredRun.build(config, run, options=sets, rows=rows, device=device)
    measured.steps(range(1, 3))
    seconds, _ = timed(lambda: measured.steps(range(3, 3 + steps)), device)
    found = {"images_per_second": rows * steps / seconds}
    return found | ({"memory_mib": torch.cuda.max_memory_allocated() / 2**20} if on_gpu else {})


def bench(device: torch.device, *, words: list[str], record: str) -> Found:
    """Run `onestep bench train`, which writes a record of its own into the folder `record`."""
    command = [sys.executable, "-m", "onestep", "bench", "train", *words, "--record", record]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(done.stdout, end="")
    yield {"exit_code": done.returncode}
    if done.returncode:
        yield {"outcome": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
