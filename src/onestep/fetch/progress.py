"""How far a download is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_WIDTH = 24
_EVERY = {True: 0.2, False: 10.0}


class Progress:
    """What one download tells of itself.

    Args:
        name: What is downloaded.
        stream: Where to; default: standard error.
        clock: Seconds.
    """

    def __init__(self, name: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._terminal = self._stream.isatty()
        self.begin(0, total=None)

    def begin(self, done: int, *, total: int | None) -> None:
        """Count from here: `done` bytes of `total` are there already, and do not count for the rate."""
        self._first = self._done = done
        self._total = total
        self._began = self._told = self._clock()

    def advance(self, count: int) -> None:
        """So many bytes more are there."""
        self._done += count
        if self._clock() - self._told >= _EVERY[self._terminal]:
            self._tell()

    def end(self) -> None:
        """Show the last state, and leave the line."""
        if self._terminal and self._done > self._first:
            self._tell()
            print(file=self._stream)

    def _tell(self) -> None:
        self._told = self._clock()
        print(self._line(), end="" if self._terminal else "\n", file=self._stream, flush=True)

    def _line(self) -> str:
        rate = (self._done - self._first) / max(self._clock() - self._began, 1e-9)
        amount = f"{self._done / 1e6:,.1f} MB" if self._total is None else self._share(self._total, rate=rate)
        start = "\r\x1b[K" if self._terminal else ""
        return f"{start}{self._name}  {amount}  {rate / 1e6:,.1f} MB/s{self._left(rate)}"

    def _share(self, total: int, *, rate: float) -> str:
        share = min(1.0, self._done / max(total, 1))
        filled = int(share * _WIDTH)
        bar = f"[{'#' * filled}{'.' * (_WIDTH - filled)}]  " if self._terminal else ""
        return f"{bar}{100 * share:5.1f} %  {self._done / 1e6:,.1f} of {total / 1e6:,.1f} MB"

    def _left(self, rate: float) -> str:
        if self._total is None or rate <= 0:
            return ""
        seconds = round(max(0, self._total - self._done) / rate)
        return f"  {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
