"""Signals that ask a launcher to leave: noted here, answered by the launcher where it stands."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from onestep.exits import Exit

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Asked:
    """While it is entered, SIGINT, SIGTERM and SIGHUP are remembered; a second SIGINT ends the process at once.

    Attributes:
        by: The first signal that came, or None.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Asked:
        self._previous = {number: signal.signal(number, self._note) for number in _ASKING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.by == signal.SIGINT:
            os._exit(Exit.CANCELLED)
        if self.by is None:
            self.by = signal.Signals(number)
