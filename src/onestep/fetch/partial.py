"""A file that is only partly here, with a note of where its bytes come from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from onestep.files import write_json


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the bytes of a part come from.

    Attributes:
        address: Whence.
        validator: What the server calls this version of the file (strong ETag, or date); None where it says nothing.
        total: Bytes of the whole file, as the server says.
    """

    address: str
    validator: str | None
    total: int | None


@dataclass(frozen=True, kw_only=True)
class Part:
    """The first bytes of a file, under a name that nothing takes for the file.

    Attributes:
        path: `{name}.part`; the note is beside it, `{name}.origin`.
    """

    path: Path

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def origin(self) -> Origin | None:
        """Where they come from; None where that is not known, and they are of no use but for a known digest."""
        try:
            return Origin(**json.loads(self._note.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".origin")

    def note(self, origin: Origin) -> None:
        """Say where the bytes come from, before they come."""
        write_json(self._note, asdict(origin))

    def discard(self) -> None:
        """Forget all of it; first the bytes, so that no note ever stands beside bytes of another origin."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    @contextmanager
    def appending(self) -> Iterator[BinaryIO]:
        """Open the part at its end, unbuffered: what was written is there even if the process is killed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            yield file

    def become(self, path: Path) -> None:
        """Flush the bytes to disk and give them their name: from here on this is the file."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path, path)
        self._note.unlink(missing_ok=True)
