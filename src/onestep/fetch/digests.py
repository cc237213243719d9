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

from onestep.files import write_text

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
    """Expected content of a file, as far as it is public.

    Attributes:
        source: Where it is stated, for messages: "config.yaml".
        size: Bytes.
        sha256: Digest, hexadecimal.
        sha256_begins: First digits of the digest.
        md5: Digest, hexadecimal.
    """

    source: str
    size: int | None = None
    sha256: str | None = None
    sha256_begins: str | None = None
    md5: str | None = None

    @property
    def has_digest(self) -> bool:
        """Whether a digest is public, so that parts of several origins may be joined and then verified."""
        return any((self.sha256, self.sha256_begins, self.md5))

    def check(self, path: Path, *, place: str) -> Verified:
        """Verify a file and return its digest.

        Raises:
            Mismatch: Other content; one line, which begins with `place`.
        """
        found = Verified(sha256=_digest(path, "sha256"), size=path.stat().st_size)
        if self.size not in (None, found.size):
            raise self._mismatch(f"{found.size:,} bytes", f"{self.size:,}", place=place)
        if self.sha256 not in (None, found.sha256):
            raise self._mismatch(f"sha256 {found.sha256}", self.sha256, place=place)
        if not found.sha256.startswith(self.sha256_begins or ""):
            raise self._mismatch(f"sha256 {found.sha256}", f"{self.sha256_begins}...", place=place)
        if self.md5 is not None and (md5 := _digest(path, "md5")) != self.md5:
            raise self._mismatch(f"md5 {md5}", self.md5, place=place)
        return found

    def _mismatch(self, found: str, expected: str | None, *, place: str) -> Mismatch:
        return Mismatch(f"{place}: got {found}, expected {expected} ({self.source})")


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        # Some publishers state only an MD5; it detects accidents, not attacks.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, name: str) -> Iterator[None]:
    """Hold a file lock, after waiting for other processes; the kernel frees the lock of a killed one.

    Args:
        path: The lock: an empty file that remains.
        name: What is locked, for messages.
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
    """Digests by an input's published name or address; several processes may use the file at once.

    Attributes:
        path: The file; it may not exist.
        lock: File lock of its writers.
    """

    path: Path
    lock: Path

    def recorded(self, key: str) -> Verified | None:
        """Return the recorded digest, or None.

        Raises:
            ValueError: The file is damaged.
        """
        entry = self._read().get(key)
        return None if entry is None else Verified(**entry)

    def record(self, key: str, verified: Verified, *, place: str) -> None:
        """Record the digest of a first download.

        Raises:
            Mismatch: Another digest is recorded; one line, which begins with `place`.
            ValueError: The file is damaged.
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
