"""What is known of a file before it is here, and whether the file is that."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


class Mismatch(ValueError):
    """A file that is not the expected one."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A file that was looked at: its SHA-256, hexadecimal, and its size in bytes. Of a folder, its listing's."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a file must be, as far as it is known.

    Attributes:
        said_by: Who says so, for messages: "config.yaml".
        size: Bytes.
        sha256: Digest, hexadecimal.
        sha256_begins: First digits of the digest.
        md5: Digest, hexadecimal.
    """

    said_by: str
    size: int | None = None
    sha256: str | None = None
    sha256_begins: str | None = None
    md5: str | None = None

    @property
    def settles(self) -> bool:
        """Whether a digest is known, so that pieces of any origin may be put together and judged by it."""
        return any((self.sha256, self.sha256_begins, self.md5))

    def check(self, path: Path, *, called: str) -> Verified:
        """Return what a file is.

        Raises:
            Mismatch: It is not the expected one; one line, which begins with `called`.
        """
        found = Verified(sha256=_digest(path, "sha256"), size=path.stat().st_size)
        if self.size not in (None, found.size):
            raise self._mismatch(f"{found.size:,} bytes", f"{self.size:,}", called=called)
        if self.sha256 not in (None, found.sha256):
            raise self._mismatch(f"sha256 {found.sha256}", self.sha256, called=called)
        if not found.sha256.startswith(self.sha256_begins or ""):
            raise self._mismatch(f"sha256 {found.sha256}", f"{self.sha256_begins}...", called=called)
        if self.md5 is not None and (md5 := _digest(path, "md5")) != self.md5:
            raise self._mismatch(f"md5 {md5}", self.md5, called=called)
        return found

    def _mismatch(self, found: str, expected: str | None, *, called: str) -> Mismatch:
        return Mismatch(f"{called}: found {found}, expected {expected} ({self.said_by})")


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        # MD5 is checked where its publisher states nothing better; it guards against accidents only.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
