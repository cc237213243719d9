"""Expected digests of inputs, and inputs.lock.yaml, which records the digests that are not public."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import yaml

from onestep.files import sha256_of_file, write_text

_HEADER = "# Digests found by `onestep fetch` at the first download and required from then on: commit this file.\n"


class Mismatch(ValueError):
    """Content other than expected."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """SHA-256 (hexadecimal) and size in bytes of a verified file; of a folder, those of its listing."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Expected content of a file, as far as it is public: bytes, and hexadecimal digests."""

    source: str  # where it is stated, for messages: "config.yaml"
    size: int | None = None
    sha256: str | None = None
    sha256_begins: str | None = None
    md5: str | None = None

    @property
    def has_digest(self) -> bool:
        """Whether a digest is public, so that parts of several origins may be joined and then verified."""
        return any((self.sha256, self.sha256_begins, self.md5))

    def check(self, path: Path, *, place: str) -> Verified:
        """Verify a file; raise Mismatch, one line that begins with `place`, on other content."""
        found, problem = Verified(sha256=sha256_of_file(path), size=path.stat().st_size), None
        if self.size not in (None, found.size):
            problem = f"got {found.size:,} bytes, expected {self.size:,}"
        elif self.sha256 not in (None, found.sha256):
            problem = f"got sha256 {found.sha256}, expected {self.sha256}"
        elif not found.sha256.startswith(self.sha256_begins or ""):
            problem = f"got sha256 {found.sha256}, expected {self.sha256_begins}..."
        elif self.md5 is not None:
            # Some publishers state only an MD5; it detects accidents, not attacks.
            with open(path, "rb") as file:
                md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            problem = f"got md5 {md5}, expected {self.md5}" if md5 != self.md5 else None
        if problem is not None:
            raise Mismatch(f"{place}: {problem} ({self.source})")
        return found


@contextlib.contextmanager
def locked(path: Path, *, name: str) -> Iterator[None]:
    """Hold a file lock, after waiting for other processes; the kernel frees the lock of a killed one.

    The lock is an empty file, which remains; messages begin with `name`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger(__name__)
    # A soft lock would survive a killed process, so a file system without flock is used without a lock.
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        log.info("%s: waiting for another process to finish", name)
        lock.acquire()
    except OSError as error:
        log.warning("%s: %s has no file locks (%s); run one fetch at a time", name, path.parent, error.strerror)
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, kw_only=True)
class InputsLock:
    """Digests by an input's published name or address, in a file that several processes may use at once."""

    path: Path
    lock: Path

    def recorded(self, key: str) -> Verified | None:
        """Return the recorded digest, or None."""
        entry = self._read().get(key)
        return None if entry is None else Verified(**entry)

    def record(self, key: str, verified: Verified, *, place: str) -> None:
        """Record the digest of a first download.

        Raises:
            Mismatch: Another digest is recorded; one line, which begins with `place`.
        """
        with locked(self.lock, name=str(self.path)):
            entries = self._read()
            before = entries.setdefault(key, asdict(verified))
            if before["sha256"] != verified.sha256:
                raise Mismatch(f"{place}: got sha256 {verified.sha256}, expected {before['sha256']} ({self.path})")
            text = _HEADER + yaml.safe_dump(entries, sort_keys=True)
            if not self.path.exists() or self.path.read_text() != text:
                write_text(self.path, text)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            entries = yaml.safe_load(self.path.read_text()) if self.path.exists() else None
        except yaml.YAMLError as error:
            raise self._damaged("invalid YAML") from error
        entries = {} if entries is None else entries
        for key, entry in entries.items() if isinstance(entries, dict) else [("", entries)]:
            if not isinstance(entry, dict) or set(entry) != {"sha256", "size"}:
                raise self._damaged(f"{key}: {entry!r}")
        return entries

    def _damaged(self, found: str) -> ValueError:
        return ValueError(
            f"{self.path}: got {found}, expected {{sha256, size}} by name. Fix: restore it from version control"
        )
