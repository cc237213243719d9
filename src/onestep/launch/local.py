"""Processes of one training on this machine, connected over loopback.

Not torchrun: its agent treats exit code 85 (state saved) as a failure, drops the ranks' exit codes after a signal, and
kills them 30 s after it, which is too short to save a state.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep import gpus
from onestep.exits import Exit

# Variables of other launchers (MPI, torchrun, Kubernetes), which describe ranks that are not ours. Torch reads some.
_OTHERS = ("PMI_", "PMIX_", "OMPI_", "I_MPI_", "MV2_", "MPI_LOCAL", "TORCHELASTIC_", "PET_")
_OF_RANKS = frozenset(
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "NODE_RANK")
    + ("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")
)

# Time that ranks get to exit: after a failure; and after a signal, to finish a step and save a state.
_EXIT_SECONDS = 10.0
_SAVING_SECONDS = 120.0


def run_locally(arguments: Sequence[str], *, processes: int) -> int:
    """Run `onestep ARGUMENTS` in `processes` ranks; the first that fails ends the others, which would wait for it.

    SIGINT, SIGTERM, SIGHUP and SIGUSR2 are forwarded once as SIGTERM, and the ranks get time to save their state.
    Ctrl-C or SIGTERM after that kills them. Returns 0, `Exit.STOPPED`, `Exit.CANCELLED` after Ctrl-C, or the failed
    rank's code (128 + signal if killed). ValueError: The machine has GPUs, but fewer than ranks.
    """
    with gpus.own(processes):
        return _run_ranks(arguments, processes=processes)


def _run_ranks(arguments: Sequence[str], *, processes: int) -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    group["LOCAL_WORLD_SIZE"] = str(processes)
    command = [sys.executable, "-m", "onestep", *arguments]
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    ranks = [subprocess.Popen(command, env={**without_ranks(os.environ), **group, **each}) for each in own]
    received: list[int] = []
    terminal = [each for each in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    signals = (signal.SIGTERM, signal.SIGUSR2, *terminal)
    previous = {number: signal.signal(number, lambda caught, _: received.append(caught)) for number in signals}
    try:
        code = _watch(ranks, received=received)
        return Exit.CANCELLED if signal.SIGINT in received else code
    finally:
        _end(ranks)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(ranks: list[subprocess.Popen[bytes]], *, received: Sequence[int]) -> int:
    """Wait for all ranks, the first failure, or the end of the time after a signal; `received` grows meanwhile."""
    deadline, noticed = math.inf, 0
    while True:
        codes = [rank.poll() for rank in ranks]
        for code in codes:
            if received and code in (-signal.SIGTERM, 128 + signal.SIGTERM):
                return Exit.STOPPED  # before it could listen to signals
            if code not in (None, Exit.FINISHED, Exit.STOPPED, Exit.CANCELLED):
                return code if code > 0 else 128 - code
        ended = [code for code in codes if code is not None]
        if len(ended) == len(ranks):
            return max(ended)
        # Not a hangup, which the terminal and its shell both send.
        again = noticed and any(each in (signal.SIGINT, signal.SIGTERM) for each in received[noticed:])
        if received and not noticed:
            deadline, noticed = time.monotonic() + _SAVING_SECONDS, len(received)
            _send(signal.SIGTERM, ranks)
        if again or time.monotonic() > deadline:
            _send(signal.SIGKILL, ranks)
        time.sleep(0.1)


def _send(number: signal.Signals, ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        rank.send_signal(number)  # no effect on an ended rank


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate the running ranks, and kill those that remain."""
    _send(signal.SIGTERM, ranks)
    deadline = time.monotonic() + _EXIT_SECONDS
    for rank in ranks:
        try:
            rank.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables by which launchers number their processes."""
    return {
        name: value for name, value in environment.items() if name not in _OF_RANKS and not name.startswith(_OTHERS)
    }


def command_line(verb: str, options: Mapping[str, Any]) -> list[str]:
    """Return a verb and its typed options as arguments of `onestep`, without `processes`: a rank starts none."""
    words = [verb]
    for name, value in options.items():
        option = f"--{name.strip('_').replace('_', '-')}"
        if name == "processes" or value is None or value is False:
            continue
        if isinstance(value, range):
            texts = [f"{value[0]}-{value[-1]}"]
        elif isinstance(value, Mapping) and value and all(isinstance(each, Path) for each in value.values()):
            texts = [f"{key}={path}" for key, path in value.items()]
        else:
            many = value if isinstance(value, (list, tuple)) else [value]
            texts = [json.dumps(each) if isinstance(each, Mapping) else str(each) for each in many]
        words += [option] if value is True else [word for text in texts for word in (option, text)]
    return words
