"""Folders that are whole or absent: filled under a temporary name, renamed when complete, and removed the same way.

A temporary name, `.state-000000128000.writing.HOST.PID.tmp`, tells whose it is, so that those of processes that were
killed can be told from those in use.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(?:writing|removing)\.(?P<host>.+)\.(?P<process>\d+)\.tmp")
_ABANDONED_SECONDS = 24 * 3600


def begin(path: Path) -> Path:
    """Make and return an empty folder beside `path`, to be filled and published; its files must be flushed."""
    fresh = _temporary(path, "writing")
    fresh.mkdir(parents=True)
    return fresh


def publish(fresh: Path, path: Path) -> None:
    """Give the filled folder `fresh` the name `path`; what has that name so far is removed."""
    if path.exists():
        remove(path)
    fresh.rename(path)
    _flush(path.parent)


def remove(path: Path) -> None:
    """Remove a folder: it loses its name first, so that a crash leaves none that is half there."""
    condemned = _temporary(path, "removing")
    path.rename(condemned)
    _discard(condemned)


def sweep(parent: Path) -> None:
    """Remove temporary folders of processes that are gone; and of this one, which must not be writing now."""
    for path in parent.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and _is_abandoned(path, host=match["host"], process=int(match["process"])):
            _discard(path)


def _temporary(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{purpose}.{socket.gethostname()}.{os.getpid()}.tmp")


def _discard(path: Path) -> None:
    # On a network file system a file that is open elsewhere lingers; the next sweep takes it.
    shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path, *, host: str, process: int) -> bool:
    if host == socket.gethostname():
        return process == os.getpid() or not _is_alive(process)
    # Another machine's processes cannot be seen from here; what has not changed for a day is nobody's.
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
