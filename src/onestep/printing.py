"""Output of a verb: streams that are UTF-8 and never fatal, and an error as one line that names its file."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import onestep

# A reader that left, and a terminal that closed: then the output has no reader, which is no error of a verb.
_NO_READER = (errno.EPIPE, errno.EIO, errno.EBADF)
# Modules whose own errors come from the content of a file.
_READERS = frozenset({"yaml", "zipfile", "zlib", "lzma", "tarfile", "struct", "pickle", "_pickle", "safetensors_rust"})


class _Output(io.FileIO):
    """A descriptor that keeps its first error instead of raising it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write what can be written; the rest is lost."""
        size = memoryview(content).nbytes
        try:
            return super().write(content) or 0
        except OSError as error:
            self.error = self.error or error
            return size


class Printing:
    """Standard output and standard error as streams of UTF-8 text, whose errors of writing are kept."""

    def __init__(self) -> None:
        self._outputs: dict[str, _Output] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[Printing]:
        """Replace the streams of this process, as far as they are its own and not those of a test."""
        before = {"stdout": sys.stdout, "stderr": sys.stderr}
        for descriptor, name in enumerate(before, start=1):
            if before[name] is getattr(sys, f"__{name}__"):
                setattr(sys, name, self._stream(descriptor, name))
        try:
            yield self
        finally:
            for name, stream in before.items():
                self._flush(name)
                setattr(sys, name, stream)

    def lost(self) -> str | None:
        """Return why standard output is incomplete; None if it is complete or has no reader any more."""
        self._flush("stdout")
        error = self._outputs["stdout"].error if "stdout" in self._outputs else None
        return None if error is None or error.errno in _NO_READER else error.strerror

    def _stream(self, descriptor: int, name: str) -> TextIO:
        try:
            self._outputs[name] = _Output(descriptor)
        except OSError:  # closed from the start
            return open(os.devnull, "w", encoding="utf-8")
        buffer = io.BufferedWriter(self._outputs[name])
        by_line = name == "stderr" or "PYTHONUNBUFFERED" in os.environ or self._outputs[name].isatty()
        # Names of files may hold bytes that are no text.
        return io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=bool(by_line))

    def _flush(self, name: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            getattr(sys, name).flush()


def is_expected(error: Exception) -> bool:
    """Return whether a user, a file or a site can cause an error of this kind."""
    kinds = (ValueError, OSError, ImportError, MemoryError, RecursionError, EOFError)
    return isinstance(error, kinds) or type(error).__module__.partition(".")[0] in _READERS


def lines_of(error: Exception) -> list[str]:
    """Return the lines that report such an error, with its file."""
    if isinstance(error, ImportError):
        return [f"{error}. Fix: install what is missing, or run the verb where it is installed"]
    place, text = file_of(error), str(error)
    if isinstance(error, OSError) and error.strerror:
        names = [os.fspath(each) for each in (error.filename, error.filename2) if isinstance(each, (str, Path))]
        place, text = " to ".join(names) or place, error.strerror
    elif isinstance(error, MemoryError):
        text = f"does not fit into memory ({' '.join(text.split()) or 'MemoryError'})"
    elif isinstance(error, RecursionError):
        text = "nested too deeply"
    elif isinstance(error, UnicodeError):
        text = f"got {text}, expected text in UTF-8"
    elif not isinstance(error, (ValueError, OSError)) or isinstance(error, json.JSONDecodeError):
        text = f"cannot be read ({' '.join(text.split()) or type(error).__name__})"
    else:  # has its place already
        return text.splitlines() or [repr(error)]
    return [f"{place}: {text}" if place else text]


def file_of(error: BaseException) -> str:
    """Return the file of an error that does not name it: the innermost path among the failed calls; or ""."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, Path):
                return str(value)
    return ""


def line_of_unexpected(error: Exception, *, verb: str) -> str:
    """Keep the traceback of any other error in a file, and return one line with the name of that file."""
    place, reason = file_of(error), " ".join(f"{type(error).__name__}: {error}".split())[:300]
    written = "".join(traceback.format_exception(error))
    name = f"{verb.replace(' ', '-') or 'onestep'}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}.txt"
    for folder in (Path("logs/errors"), Path(tempfile.gettempdir(), "onestep-errors")):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            kept = folder / name
            kept.write_text(f"onestep {onestep.__version__}: {sys.argv}\n{written}", encoding="utf-8", errors="replace")
            return f"{f'{place}: ' if place else ''}unexpected {reason}. Fix: report it with {kept.absolute()}"
    print(written, file=sys.stderr)
    return f"{f'{place}: ' if place else ''}unexpected {reason}. Fix: report it with the lines above"
