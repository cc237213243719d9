"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed. Locks on files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onestep.shapes import misfit

# Errors of a file system that cannot flush the names in a folder.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_POLL_SECONDS = 0.2
_MOST_TEXT = 2**26  # bytes of a text that is read whole
_SEAL = "content_sha256"
_ABANDONED_SECONDS = 24 * 3600


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    On an exception the temporary file is removed and `path` keeps what it held before. An OSError of the file that is
    written, such as a full disk, has the name `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        # An error of a write has no name, and the temporary one is no help.
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a temporary name beside `path`; what killed processes left under such names of `path` is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        host, _, process = left.name[len(path.name) + 2 : -len(".tmp")].rpartition(".")
        if process.isdecimal() and is_abandoned(left, host=host, process=int(process)):
            with contextlib.suppress(OSError):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def is_abandoned(path: Path, *, host: str, process: int) -> bool:
    """Return whether the process that wrote `path` has ended, or is this one, which must not be writing it."""
    try:
        if host != socket.gethostname():
            # Processes of another machine are not visible here: a day without a change means abandoned.
            return time.time() - path.lstat().st_mtime > _ABANDONED_SECONDS
        if process != os.getpid():
            os.kill(process, 0)
        return process == os.getpid()
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk; a file system that cannot flush a folder is passed over."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


class Lock:
    """A lock on the file `path`, which stays; the kernel frees the lock of a process that ends.

    Not of a library: those take more than EWOULDBLOCK for a lock that another process holds, and would wait for ever.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, *, seconds: float = 0.0, stop: Callable[[], bool] = lambda: False) -> bool:
        """Take the lock within `seconds`, and return whether it is held; a request to stop ends the wait.

        Raises:
            ValueError: `path` is a link or no file, or the file system has no locks.
        """
        deadline = time.monotonic() + seconds
        while not self._take():
            if time.monotonic() >= deadline or stop():
                return False
            time.sleep(max(0.0, min(_POLL_SECONDS, deadline - time.monotonic())))
        return True

    def release(self) -> None:
        """Let the lock go, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, text: str) -> None:
        """Replace the content of the locked file, such as the process that holds it."""
        assert self._descriptor is not None, self.path
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def _take(self) -> bool:
        """Try once."""
        # Not through a link, which could lead to any file; not waiting for the other end of a pipe.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise self._no_file() from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise self._no_file()
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Of a file that was removed meanwhile, the lock has no effect.
            if os.fstat(descriptor).st_nlink:
                self._descriptor, descriptor = descriptor, -1
            return self.is_held
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                return False
            fix = "Fix: mount the file system with flock, or use another one"
            raise ValueError(f"{self.path}: got no lock ({error.strerror}), expected flock. {fix}") from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _no_file(self) -> ValueError:
        return ValueError(f"{self.path}: got a link or no plain file, expected the file of a lock. Fix: remove it")


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON; ValueError where it has what JSON cannot represent, such as NaN."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        content = f"{text}\n".encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be written as JSON ({error})") from error
    write_bytes(path, content)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the digest of its own content, which `read_json` checks wherever there is one."""
    content = {key: value for key, value in record.items() if key != _SEAL}
    return {**content, _SEAL: sha256_of_text(canonical_json(content))}


class NoFile(ValueError, FileNotFoundError):
    """A file is missing: an error for users in one line, and a FileNotFoundError for code that expects it."""


def regular_file(path: Path | str) -> Path:
    """Return the path of a regular file, also through links. ValueError: Something else. NoFile: There is none."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        kind = NoFile if isinstance(error, FileNotFoundError) else ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise kind(f"{path}: got no file ({reason}), expected one. Fix: correct the path, or make it") from error
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise ValueError(f"{path}: got {found}, expected a file. Fix: correct the path")
    return Path(path)


def read_text(path: Path | str, *, most: int = _MOST_TEXT) -> str:
    """Read a regular file of UTF-8. ValueError: It is none, is not UTF-8, cannot be read, or has over `most` bytes."""
    path = regular_file(path)
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}). Fix: check the file and its rights") from error
    if len(content) > most:
        raise ValueError(f"{path}: got more than {most:,} bytes, expected a text. Fix: correct the path")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got bytes that are not UTF-8 (at {error.start:,}), expected text") from error


def read_json(path: Path | str, shape: Any = None) -> Any:
    """Read a JSON file, of a shape as in `shapes` unless it is None.

    ValueError: The file is no JSON, or of another shape, has NaN, or its content is not that of its digest.
    """
    try:
        value = parse_json(read_text(path))
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        fix = "delete it and run again to rebuild it"
        raise ValueError(f"{path}: not a JSON file ({error}); {fix}") from error
    found = None if shape is None else misfit(value, shape)
    if found is None and isinstance(value, dict) and _SEAL in value and not _is_sealed(value):
        found = f"{_SEAL}: got the digest of another content"
    if found is not None:
        raise ValueError(f"{path}: {found}. Fix: delete it and run again to rebuild it")
    return value


def parse_json(text: str) -> Any:
    """Return a JSON value. ValueError: The text is none, is nested too deeply, or has NaN."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"got {name}, expected a finite number")


def _is_sealed(record: Mapping[str, Any]) -> bool:
    try:
        return sealed(record) == record
    except (ValueError, RecursionError):
        return False


def canonical_json(value: Any) -> str:
    """Return the one spelling of `value` that hashes are taken of: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of_text(text: str) -> str:
    """Return the hexadecimal SHA-256 of `text` in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_file(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
