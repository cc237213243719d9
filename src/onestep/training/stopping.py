"""Requests to stop by signal: handlers set a flag, and the training stops at the next step boundary."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

# SLURM sends the first before a time limit or a preemption; the second is the general request to end.
_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


def never() -> bool:
    """Never request a stop."""
    return False


class Stop:
    """A request to stop this process.

    A handler may run between any two instructions, during a collective or a write. So it only sets a flag, which the
    training reads where it can stop.
    """

    def __init__(self) -> None:
        self._asked = False

    def asked(self) -> bool:
        """Return whether a signal arrived."""
        return self._asked

    def ask(self, *_: object) -> None:
        """Set the flag; the arguments of a signal handler are ignored."""
        self._asked = True

    def listen(self) -> None:
        """Install handlers for SIGUSR2 and SIGTERM; only the main thread may call this."""
        for number in _SIGNALS:
            signal.signal(number, self.ask)


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Yield a `Stop` with handlers installed; restore the previous handlers afterwards."""
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    stop = Stop()
    stop.listen()
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
