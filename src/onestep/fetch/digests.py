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
        size = path.stat().st_size
        self._compare(
            "bytes", f"{size:,}", self.size is None or size == self.size, f"{self.size or 0:,}", called=called
        )
        sha256 = _digest(path, "sha256")
        self._compare("sha256", sha256, self.sha256 in (None, sha256), self.sha256, called=called)
        begins = self.sha256_begins or ""
        self._compare("sha256", sha256, sha256.startswith(begins), f"{begins}...", called=called)
        if self.md5 is not None:
            md5 = _digest(path, "md5")
            self._compare("md5", md5, md5 == self.md5, self.md5, called=called)
        return Verified(sha256=sha256, size=size)

    def _compare(self, what: str, found: str, agrees: bool, expected: str | None, *, called: str) -> None:
        if not agrees:
            raise Mismatch(f"{called}: found {what} {found}, expected {expected} ({self.said_by})")


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        # MD5 is checked where its publisher states nothing better; it guards against accidents only.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
