"""The GPUs of a machine and the jobs on it: each job has its own, by a lock for each GPU."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from onestep.files import Lock

DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")))
"""Files of GPU drivers; without one of them there is no GPU, and torch is not imported to count them."""

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 1.0

_logger = logging.getLogger(__name__)


def visible() -> list[str]:
    """Return the GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    given = os.environ.get(_VISIBLE)
    if given == "" or not any(path.exists() for path in DRIVERS):
        return []
    import torch

    count = torch.cuda.device_count()  # by the driver's library: the variable still has an effect afterwards
    return (given.split(",") if given else [str(index) for index in range(count)])[:count]


def problem(processes: int, *, gpus: int) -> str | None:
    """Return why so many processes cannot share the visible GPUs, each needing its own; None if they can, or on a CPU.

    Two ranks on one GPU are refused by NCCL, in a message of many lines.
    """
    if gpus == 0 or processes <= gpus:
        return None
    fix = f"launch.processes_per_node: {gpus}, --processes {gpus}, or CUDA_VISIBLE_DEVICES= for the CPU"
    return f"processes: got {processes} for {gpus} GPU{'s' * (gpus > 1)}, expected one GPU for each. Fix: {fix}"


@contextlib.contextmanager
def own(count: int = 1, *, stop: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold `count` GPUs that no other job of this user holds, and show this process these alone.

    It waits until they are free, and yields False if a request to stop came first. Without a GPU, in a SLURM job and in
    a rank, which have theirs, nothing happens. CUDA must not be in use yet. ValueError: There are not so many.
    """
    names = [] if os.environ.keys() & {"SLURM_JOB_ID", "RANK"} else visible()
    if found := problem(count, gpus=len(names)):
        raise ValueError(found)
    if not names:
        yield True
        return
    with contextlib.ExitStack() as held:
        chosen = _taken(names, count, held=held, stop=stop)
        if chosen is None:
            yield False
            return
        before = os.environ.get(_VISIBLE)
        os.environ[_VISIBLE] = ",".join(chosen)
        try:
            yield True
        finally:
            del os.environ[_VISIBLE]
            if before is not None:
                os.environ[_VISIBLE] = before


def _taken(
    names: Sequence[str], count: int, *, held: contextlib.ExitStack, stop: Callable[[], bool]
) -> list[str] | None:
    """Lock `count` of the GPUs until `held` is closed, and return their names; None after a request to stop."""
    folder = Path(tempfile.gettempdir(), f"onestep-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    waits = False
    # One job at a time chooses, so that two that need several do not each hold a part of them for ever.
    queue = Lock(folder / "queue.lock")
    held.callback(queue.release)
    free, chosen = {name: Lock(folder / f"{quote(name, safe='')}.lock") for name in names}, list[str]()
    while True:
        if queue.is_held or queue.acquire():
            for name in [each for each in names if each not in chosen]:
                if len(chosen) < count and free[name].acquire():
                    held.callback(free[name].release)
                    chosen.append(name)
            if len(chosen) == count:
                queue.release()
                return chosen
        if stop():
            return None
        if not waits:
            _logger.info("waiting for %d of the GPUs %s, which other jobs use", count, ", ".join(names))
            waits = True
        time.sleep(_POLL_SECONDS)
