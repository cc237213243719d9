"""Several processes of one run on this machine, joined over loopback."""

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

# How long ranks may take to leave: with nothing to save; and with a step to end and a state to write.
_PATIENCE_SECONDS = 10.0
_SAVING_SECONDS = 120.0


def run_locally(arguments: Sequence[str], *, processes: int) -> int:
    """Run `onestep ARGUMENTS` in `processes` ranks; return 0, or the exit code of the first rank that failed.

    When a rank fails, the others are ended: they would wait for it for ever. SIGTERM is passed on to the ranks, once,
    and they get time to save their work; a second signal ends them at once. SIGINT ends them within seconds.
    """
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
    }
    command = [sys.executable, "-m", "onestep", *arguments]
    ranks = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    signals: list[int] = []
    previous = {
        number: signal.signal(number, lambda caught, _: signals.append(caught))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        code = _watch(ranks, signals=signals)
        return Exit.CANCELLED if signal.SIGINT in signals else code
    finally:
        _end(ranks)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(ranks: list[subprocess.Popen], *, signals: Sequence[int]) -> int:
    """Wait for all ranks, for the first that fails, or for as long as they may take after a signal.

    Args:
        ranks: The processes.
        signals: Those that have come so far; grows meanwhile.
    """
    latest = math.inf
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [code for code in codes if code not in (None, Exit.FINISHED, Exit.STOPPED)]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return max(codes)
        if signals and latest == math.inf:
            latest = time.monotonic() + (_PATIENCE_SECONDS if signal.SIGINT in signals else _SAVING_SECONDS)
            _send(signal.SIGTERM, ranks)
        if len(signals) > 1 or time.monotonic() > latest:
            _send(signal.SIGKILL, ranks)
        time.sleep(0.1)


def _send(number: signal.Signals, ranks: Sequence[subprocess.Popen]) -> None:
    for rank in ranks:
        rank.send_signal(number)  # nothing happens where it has left


def _end(ranks: list[subprocess.Popen]) -> None:
    """Ask the ranks that still run to stop, then make them."""
    running = [rank for rank in ranks if rank.poll() is None]
    for rank in running:
        rank.terminate()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for rank in running:
        try:
            rank.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _free_port() -> int:
    """Return a port that is free on loopback right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def command_line(verb: str, options: Mapping[str, Any]) -> list[str]:
    """Return a verb and its typed options as arguments of `onestep`; None, False and empty options are left out.

    Args:
        verb: The verb.
        options: Values by parameter name. `processes` is left out, because ranks do not start further ones.
    """
    words = [verb]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if name == "processes" or value is None or value is False:
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, range):
            words += [option, f"{value[0]}-{value[-1]}"]
        elif isinstance(value, Mapping) and all(isinstance(each, Path) for each in value.values()):
            words += [word for key, path in value.items() for word in (option, f"{key}={path}")]
        else:
            words += [option, json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return words
