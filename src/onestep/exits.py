"""How the commands that train end, as numbers that batch scripts and launchers go by."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """An exit code.

    Attributes:
        FINISHED: All is done.
        FAILED: It broke; the traceback, or the last lines of the log, say where.
        WRONG_INPUT: A config, a file or an allocation does not fit; one line says which and what to change. Another
            try would end alike.
        DETACHED: The job trains on, and nobody here watches it any more; the same command watches it again.
        STOPPED: A signal asked the training to stop, and its state is saved; started again, it goes on from there.
        CANCELLED: Ctrl-C ended it, as shells count it (128 + SIGINT).
    """

    FINISHED = 0
    FAILED = 1
    WRONG_INPUT = 2
    DETACHED = 75
    STOPPED = 85
    CANCELLED = 130
