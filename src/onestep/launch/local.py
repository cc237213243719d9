"""Several processes of one run on this machine, joined over loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_PATIENCE_SECONDS = 10.0


def run_locally(arguments: Sequence[str], *, processes: int) -> int:
    """Run `onestep ARGUMENTS` in `processes` ranks; return 0, or the exit code of the first rank that failed.

    When a rank fails, the others are ended: they would wait for it for ever. SIGINT and SIGTERM reach every rank.
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
    previous = {number: signal.signal(number, lambda *_: _end(ranks)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _watch(ranks)
    finally:
        _end(ranks)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(ranks: list[subprocess.Popen]) -> int:
    """Wait for all ranks, or for the first that fails."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [code for code in codes if code]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


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
