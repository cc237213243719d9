"""Reasons for a launcher to leave: signals, and the end of the Snakemake process that started it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from onestep.exits import Exit

_PROC = Path("/proc")
_LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of this machine.

    Attributes:
        number: Process id.
        start: Start time in clock ticks since boot; distinguishes a later process of the same id.
    """

    number: int
    start: str

    @property
    def is_running(self) -> bool:
        """Whether it runs; a zombie does not."""
        fields = _fields(self.number)
        return fields is not None and fields[19] == self.start and fields[0] != "Z"


def parent_snakemake(number: int | None = None) -> Process | None:
    """Return the nearest Snakemake among the ancestors of a process (default: this one), or None."""
    fields = _fields(os.getpid() if number is None else number)
    while fields is not None and int(fields[1]) > 1:
        parent = int(fields[1])
        fields = _fields(parent)
        if fields is not None and _is_snakemake(parent):
            return Process(number=parent, start=fields[19])
    return None


def _fields(number: int) -> list[str] | None:
    """Return the fields of /proc/N/stat after the program name: state, parent, ..., start."""
    try:
        return (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _is_snakemake(number: int) -> bool:
    """Return whether a process runs `snakemake ...`, `python -m snakemake ...` or a script of that name."""
    try:
        words = (_PROC / str(number) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(Path(os.fsdecode(word)).name == "snakemake" for word in words[:3])


class LeaveRequests:
    """Context that records SIGINT, SIGTERM and SIGHUP; a second SIGINT exits at once with `Exit.CANCELLED`.

    The end of `parent`, by default the Snakemake above this process, counts as SIGHUP.
    """

    def __init__(self, parent: Process | None = None) -> None:
        self._parent = parent_snakemake() if parent is None else parent
        self._signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    @property
    def by(self) -> signal.Signals | None:
        """First signal received, or None."""
        if self._signal is None and self._parent is not None and not self._parent.is_running:
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
