"""One run from its run.yaml to published snapshots: found finished, taken up, or begun; specs never mix."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from onestep import distributed
from onestep.checkpoints.training_state import discard_training_states
from onestep.distributed import Ranks
from onestep.files import write_json
from onestep.training.assembly import assemble
from onestep.training.assignment import Assignment
from onestep.training.loop import Training, passes, train
from onestep.training.publication import publish
from onestep.training.stopping import never

_logger = logging.getLogger(__name__)


# How looking for the lock of a run's folder ends.
_HELD, _STOPPED, _REFUSED = range(3)


def carry_out(
    assignment: Assignment,
    *,
    folder: Path,
    code: str,
    output: Path | None,
    stop: Callable[[], bool] = never,
    lock_seconds: float = 0.0,
    when_stopped: Callable[[], object] | None = None,
) -> bool:
    """Train a run to its end, or until it is asked to stop; what is done is not done again.

    Args:
        assignment: What to train.
        folder: Where the run works: what `assignment.folder` says for this code.
        code: Fingerprint of the training code now running.
        output: Receives `{run}/snapshots/*.safetensors`, `{run}/log.jsonl` and `{run}/summary.json` of the finished
            run; None publishes nothing.
        stop: Whether this process was asked to stop; one that was is enough for all to save the state and leave.
        lock_seconds: How long to wait for another process that trains this run, which may be about to leave.
        when_stopped: Called in the leading process before any process leaves a stopped training.

    Returns:
        Whether the run is finished; else it was asked to stop, and its state is written.

    Raises:
        ValueError: An input is not usable, or another process trains this run.
    """
    with (
        distributed.joined() as ranks,
        _alone(folder, ranks=ranks, seconds=lock_seconds, stop=stop) as held,
    ):
        finished = held and _finish(assignment, folder=folder, ranks=ranks, code=code, stop=stop)
        if finished and output is not None and ranks.leads:
            publish(folder, output / folder.parent.name)
        if not finished and when_stopped is not None:
            if ranks.leads:
                when_stopped()
            distributed.wait(ranks=ranks)
    return finished


@contextlib.contextmanager
def _alone(folder: Path, *, ranks: Ranks, seconds: float, stop: Callable[[], bool]) -> Iterator[bool]:
    """Hold the folder's lock while training; yield whether it is held, which it is not if asked to stop while waiting.

    The leading process holds it, and tells the others how that went; the lock of a killed process frees itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as file:
        taken = _take(file, seconds=seconds, stop=stop) if ranks.leads else _HELD
        found = distributed.highest(taken, ranks=ranks)
        if found == _REFUSED:
            raise ValueError(f"{folder}: {_owner(file)} is training this run; wait for it, or end it first")
        yield found == _HELD


def _take(file: IO[str], *, seconds: float, stop: Callable[[], bool]) -> int:
    """Lock a file, waiting for at most `seconds`, and write into it who holds it."""
    until = time.monotonic() + seconds
    says = functools.cache(_logger.info)
    while not _locks(file):
        if stop():
            return _STOPPED
        if time.monotonic() >= until:
            return _REFUSED
        says("%s: waiting for up to %.0f s, because %s is training this run", file.name, seconds, _owner(file))
        time.sleep(1.0)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return _HELD


def _locks(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read() or "another process"


def _finish(assignment: Assignment, *, folder: Path, ranks: Ranks, code: str, stop: Callable[[], bool]) -> bool:
    """Return whether the run is finished, after training it as far as it goes."""
    # Not every machine may see yet what another has just written; one that does is right.
    if distributed.highest((folder / "done.json").exists(), ranks=ranks):
        return True
    training = assemble(
        assignment.document(),
        data=assignment.inputs.data,
        teacher=assignment.inputs.teacher,
        backbones=assignment.inputs.backbones,
        class_embeddings=assignment.inputs.class_embeddings,
        ranks=ranks,
        rows_per_pass=assignment.rows_per_pass,
        cache=assignment.state / ".cache" if assignment.cache is None else assignment.cache,
    )
    return _train(training, folder=folder, ranks=ranks, code=code, state_seconds=assignment.state_seconds, stop=stop)


def _train(
    training: Training, *, folder: Path, ranks: Ranks, code: str, state_seconds: float, stop: Callable[[], bool]
) -> bool:
    history = train(training, folder=folder, ranks=ranks, state_seconds=state_seconds, code=code, stop=stop)
    if history is not None and ranks.leads:
        facts = _facts(training, ranks=ranks)
        write_json(folder / "done.json", {"run": training.name, "spec": folder.name, "code": code, **history, **facts})
        # The quota is short: what was needed only to take the run up again goes.
        discard_training_states(folder)
    return history is not None


def _facts(training: Training, *, ranks: Ranks) -> dict[str, Any]:
    """Return what a reader of the tables wants to know of a finished run."""
    # Phases switch requires_grad on and off; what the average follows is what trains.
    total = sum(parameter.numel() for parameter in training.published.parameters())
    trainable = sum(average.numel() for average in training.average.state().values())
    return {
        "images_seen": training.images,
        "parameters": total,
        "trainable": trainable,
        "frozen": total - trainable,
        "frozen_share": (total - trainable) / total,
        "world_size": ranks.world,
        "passes": len(passes(ranks.share_of(training.batch), limit=training.rows_per_pass)),
        "device": _device_name(ranks.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
