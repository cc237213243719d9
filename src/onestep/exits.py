"""Exit codes of the verbs that train, on which batch scripts and launchers depend."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """An exit code."""

    FINISHED = 0
    FAILED = 1  # see the traceback or the last lines of the log
    WRONG_INPUT = 2  # a config, file or allocation does not fit; one line names it and the fix; a retry fails alike
    DETACHED = 75  # the job continues without a launcher; the same command attaches to it
    STOPPED = 85  # the training saved its state after a signal; the same command resumes it
    CANCELLED = 130  # Ctrl-C (128 + SIGINT, as in shells)
