"""One fetch of a file at a time, across processes and, where its locks reach so far, across machines."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def own_turn(path: Path, *, called: str) -> Iterator[None]:
    """Hold a lock while the block runs; wait for it where another process has it. A killed process gives it back.

    Args:
        path: The lock; an empty file that stays, because taking it away could let two in.
        called: What is waited for, in words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(descriptor, called=called)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, *, called: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logging.getLogger(__name__).info("%s: another process is at it; waiting for its turn to end", called)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        logging.getLogger(__name__).warning("%s: this file system has no locks; run one fetch at a time", called)
