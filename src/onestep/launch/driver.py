"""Whether the Snakemake that a launcher works for is still there: its death is no reason to go on publishing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of this machine, told from a later one of the same number by its start.

    Attributes:
        number: Its process id.
        start: When it began, in ticks since the machine started.
    """

    number: int
    start: str

    @property
    def lives(self) -> bool:
        """Whether it still runs; one that is dead and not yet collected does not."""
        fields = _fields(self.number)
        return fields is not None and fields[19] == self.start and fields[0] != "Z"


def driver_of(number: int | None = None) -> Process | None:
    """Return the nearest ancestor of a process (by default, this one) that is Snakemake; None where there is none."""
    fields = _fields(os.getpid() if number is None else number)
    while fields is not None and int(fields[1]) > 1:
        parent = int(fields[1])
        fields = _fields(parent)
        if fields is not None and _is_snakemake(parent):
            return Process(number=parent, start=fields[19])
    return None


def _fields(number: int) -> list[str] | None:
    """Return what /proc/N/stat says after the name, which may hold anything: state, parent, ..., start."""
    try:
        return (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _is_snakemake(number: int) -> bool:
    """Whether a process was started as `snakemake ...` or `python -m snakemake ...`, or by a script of that name."""
    try:
        words = (_PROC / str(number) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(Path(os.fsdecode(word)).name == "snakemake" for word in words[:3])
