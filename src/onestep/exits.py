"""Exit codes of the verbs that train, on which batch scripts and launchers depend."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """An exit code.

    Attributes:
        FINISHED: The run is finished.
        FAILED: An error; see the traceback or the last lines of the log.
        WRONG_INPUT: A config, a file or an allocation does not fit; one line names it and the fix. A retry fails alike.
        DETACHED: The job continues without a launcher; the same command attaches to it.
        STOPPED: The training saved its state after a signal; the same command resumes it.
        CANCELLED: Ctrl-C (128 + SIGINT, as in shells).
    """

    FINISHED = 0
    FAILED = 1
    WRONG_INPUT = 2
    DETACHED = 75
    STOPPED = 85
    CANCELLED = 130
