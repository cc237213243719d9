"""Sites without comforts, each made in a process of its own before a verb runs in it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOT_HERE = 77  # exit code: this machine does not let its users have namespaces of their own
_NEW_USER, _NEW_HOST_NAME = 0x10000000, 0x04000000


def _verb(words: Sequence[str]) -> None:
    from onestep.cli import main

    raise SystemExit(main(list(words)))


def without_locks(error: str, words: Sequence[str]) -> None:
    """Run a verb where the file system answers a lock with this error."""

    def flock(*_: Any) -> None:
        raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))

    fcntl.flock = flock  # type: ignore[assignment]
    _verb(words)


def without_flushed_folders(error: str, words: Sequence[str]) -> None:
    """Run a verb where the file system answers the flush of a folder with this error."""
    flush = os.fsync

    def fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))
        flush(file)

    os.fsync = fsync
    _verb(words)


def without_a_name(user: int, host: str | None, without: Sequence[str], words: Sequence[str]) -> None:
    """Run a verb as a user id, and on a host, that no directory has; and without some variables."""
    own = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | (_NEW_HOST_NAME if host else 0)) != 0:
        raise SystemExit(NOT_HERE)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {own[0]} 1")
    Path("/proc/self/gid_map").write_text(f"{user} {own[1]} 1")
    if host and libc.sethostname(host.encode(), len(host)) != 0:
        raise SystemExit(NOT_HERE)
    for name in without:
        os.environ.pop(name, None)
    assert os.getuid() == user
    # A new Python: what it imports asks for the name.
    os.execv(sys.executable, [sys.executable, "-m", "onestep", *words])


def told_to_stop(number: int, after: float, words: Sequence[str]) -> None:
    """Run a verb that receives a signal after some seconds."""
    parent = os.getpid()
    if os.fork() == 0:
        time.sleep(after)
        os.kill(parent, signal.Signals(number))
        os._exit(0)
    _verb(words)


def into_a_closed_pipe(words: Sequence[str]) -> None:
    """Run a verb whose output nobody reads any more."""
    reading, writing = os.pipe()
    kept = os.dup(1)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(reading)
    from onestep.cli import main

    code = main(list(words))
    os.dup2(kept, 1)
    os._exit(code)  # without the flush of what could not be written
