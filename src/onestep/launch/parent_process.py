"""Reasons for a launcher to leave: signals, and the end of the Snakemake process that started it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from onestep.exits import Exit

_PROC = Path("/proc")
_LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _fields(process: int) -> list[str] | None:
    """Return the fields of /proc/N/stat after the program name: state, parent, ..., start; None if it has ended."""
    with contextlib.suppress(OSError):
        return (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    return None


def _snakemake_above() -> tuple[int, str] | None:
    """Return id and start of the nearest ancestor that runs `snakemake`, `python -m snakemake` or such a script.

    The start (clock ticks since boot) distinguishes it from a later process of the same id.
    """
    fields = _fields(os.getpid())
    while fields is not None and int(fields[1]) > 1:
        parent = int(fields[1])
        fields = _fields(parent)
        try:
            words = (_PROC / str(parent) / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if fields is not None and any(Path(os.fsdecode(word)).name == "snakemake" for word in words[:3]):
            return parent, fields[19]
    return None


class LeaveRequests:
    """Context that records SIGINT, SIGTERM and SIGHUP; a second SIGINT exits at once with `Exit.CANCELLED`.

    The end of the Snakemake above this process counts as SIGHUP.
    """

    def __init__(self) -> None:
        self._snakemake = _snakemake_above()
        self._signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    @property
    def by(self) -> signal.Signals | None:
        """First signal received, or None."""
        if self._signal is None and self._snakemake is not None:
            number, start = self._snakemake
            fields = _fields(number)
            if fields is None or fields[19] != start or fields[0] == "Z":
                self._signal = signal.SIGHUP
        return self._signal

    def __enter__(self) -> LeaveRequests:
        # SIGHUP stays ignored under nohup.
        handled = [each for each in _LEAVING if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._record) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            os._exit(Exit.CANCELLED)
        if self._signal is None:
            self._signal = signal.Signals(number)
