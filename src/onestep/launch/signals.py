"""What asks a launcher to leave, signals and the death of its Snakemake: noted here, answered where it stands."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from onestep.exits import Exit
from onestep.launch.driver import Process, driver_of

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Asked:
    """While it is entered, SIGINT, SIGTERM and SIGHUP are remembered; a second SIGINT ends the process at once."""

    def __init__(self, driver: Process | None = None) -> None:
        """Watch `driver` as well, by default the Snakemake above this process."""
        self._driver = driver_of() if driver is None else driver
        self._signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    @property
    def by(self) -> signal.Signals | None:
        """The first signal that came, or None; a dead Snakemake counts as SIGHUP, its terminal went with it."""
        if self._signal is None and self._driver is not None and not self._driver.lives:
            self._signal = signal.SIGHUP
        return self._signal

    def __enter__(self) -> Asked:
        # nohup lets SIGHUP be ignored: whoever typed that wants us to stay.
        heeded = [each for each in _ASKING if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            os._exit(Exit.CANCELLED)
        if self._signal is None:
            self._signal = signal.Signals(number)
