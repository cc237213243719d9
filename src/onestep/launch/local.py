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

from onestep.exits import Exit

# Time that ranks get to exit: after a failure or Ctrl-C; and after SIGTERM, to finish a step and save a state.
_EXIT_SECONDS = 10.0
_SAVING_SECONDS = 120.0


def run_locally(arguments: Sequence[str], *, processes: int) -> int:
    """Run `onestep ARGUMENTS` in `processes` ranks; the first that fails ends the others, which would wait for it.

    SIGTERM is forwarded once, and the ranks get time to save their state; a second signal kills them. SIGINT ends them
    within seconds. Returns 0, `Exit.STOPPED`, `Exit.CANCELLED`, or the failed rank's code (128 + signal if killed).
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    command = [sys.executable, "-m", "onestep", *arguments]
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    ranks = [subprocess.Popen(command, env={**os.environ, **group, **each}) for each in own]
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
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
    deadline = math.inf
    while True:
        codes = [rank.poll() for rank in ranks]
        for code in codes:
            if code not in (None, Exit.FINISHED, Exit.STOPPED):
                return code if code > 0 else 128 - code
        ended = [code for code in codes if code is not None]
        if len(ended) == len(ranks):
            return max(ended)
        if received and deadline == math.inf:
            deadline = time.monotonic() + (_EXIT_SECONDS if signal.SIGINT in received else _SAVING_SECONDS)
            _send(signal.SIGTERM, ranks)
        if len(received) > 1 or time.monotonic() > deadline:
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


def command_line(verb: str, options: Mapping[str, Any]) -> list[str]:
    """Return a verb and its typed options as arguments of `onestep`, without `processes`: a rank starts none."""
    words = [verb]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
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
