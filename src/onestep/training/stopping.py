"""Requests to stop by signal: handlers set a flag, and the training stops at the next step boundary."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

# SLURM sends the first before a time limit or a preemption; the second is the general request to end.
_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
# Of a terminal: Ctrl-C, and its end. They stay ignored in the background of a shell and under nohup.
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)


def never() -> bool:
    """Never request a stop."""
    return False


class Stop:
    """A request to stop this process.

    A handler may run between any two instructions, during a collective or a write. So it only sets a flag, which the
    training reads where it can stop; a second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self._asked, self._interrupted = False, False

    @property
    def by_ctrl_c(self) -> bool:
        """Whether Ctrl-C was the request."""
        return self._interrupted

    def asked(self) -> bool:
        """Return whether a signal arrived."""
        return self._asked

    def ask(self, number: int | None = None, _: object = None) -> None:
        """Set the flag; the arguments are those of a signal handler."""
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self._asked = True

    def listen(self) -> None:
        """Install handlers for SIGUSR2, SIGTERM, SIGINT and SIGHUP; only the main thread may call this."""
        for number in (*_SIGNALS, *_OF_TERMINALS):
            if number in _SIGNALS or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.ask)


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Yield a `Stop` with handlers installed; restore the previous handlers afterwards."""
    previous = {number: signal.getsignal(number) for number in (*_SIGNALS, *_OF_TERMINALS)}
    stop = Stop()
    stop.listen()
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
