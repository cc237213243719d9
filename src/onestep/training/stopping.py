"""Stopping when a signal asks for it: the handlers set a flag, and the training leaves at its next step boundary."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

# SLURM sends the first ahead of a time limit or a preemption; the second is everybody's.
_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


def never() -> bool:
    """Return False: nobody asks a training to stop."""
    return False


class Stop:
    """Whether this process was asked to stop.

    A handler may run between any two instructions, in the midst of a collective or of a file that is half written. So
    it does nothing but set a flag, which the training looks at where it can stop.
    """

    def __init__(self) -> None:
        self._asked = False

    def asked(self) -> bool:
        """Return whether a signal came."""
        return self._asked

    def ask(self, *_: object) -> None:
        """Set the flag; what is passed to a signal handler is of no interest."""
        self._asked = True

    def listen(self) -> None:
        """Let SIGUSR2 and SIGTERM set the flag from now on; only the main thread may call this."""
        for number in _SIGNALS:
            signal.signal(number, self.ask)


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Yield a `Stop` that listens to signals; afterwards they do again what they did before."""
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    stop = Stop()
    stop.listen()
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
