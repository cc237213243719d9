"""Download a file over unreliable connections: it arrives complete and verified, or the error lists what arrived."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from onestep.fetch.local_files import copy_or_link
from onestep.files import sha256_of_file, write_json
from onestep.progress import Bar, Lines

_CHUNK = 2**16
_RETRIED = (408, 425, 429, 500, 502, 503, 504)


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


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Limits of retries: consecutive attempts without a new byte, and times in seconds."""

    attempts: int = 6
    pause: float = 1.0  # before the second attempt; doubled from attempt to attempt
    longest: float = 60.0  # pause, also for Retry-After
    silence: float = 60.0  # without a byte, after which a connection is dead


class Unobtainable(ValueError):
    """No address provides the file; a line for each: address, what was found, what was expected."""


class _Unusable(Exception):
    """An address that does not provide the file; the next one is tried."""


class _Interrupted(Exception):
    """An attempt that ended early; the next one continues, after the `wait` seconds that the server requests."""

    def __init__(self, reason: str, *, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Origin of a part; by default unknown."""

    address: str = ""
    validator: str | None = None  # version of the file: strong ETag, or date
    total: int | None = None  # bytes of the complete file


@dataclass(frozen=True, kw_only=True)
class Part:
    """First bytes of a file, in `{name}.part`; their origin is beside it in `{name}.origin`."""

    path: Path

    @property
    def size(self) -> int:
        """Bytes present."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def note(self) -> Path:
        """File with their origin, written before they arrive."""
        return self.path.with_suffix(".origin")

    @property
    def origin(self) -> Origin:
        """Their origin; bytes of unknown origin are useless without a known digest."""
        try:
            return Origin(**json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return Origin()

    def discard(self) -> None:
        """Delete the bytes, then their origin, so that no origin is ever recorded for other bytes."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def publish(self, path: Path) -> None:
        """Flush the complete file to disk and move it to its path."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path, path)
        self.note.unlink(missing_ok=True)


def is_reachable(address: str, *, seconds: float = 5.0) -> bool:
    """Return whether an address answers in this time; nothing is downloaded."""
    if address.startswith("file://"):
        return Path(unquote(urlsplit(address).path)).exists()
    try:
        return requests.head(address, timeout=seconds, allow_redirects=True).ok
    except requests.RequestException:
        return False


def download(
    addresses: Sequence[str], *, part: Part, expected: Expected, name: str, patience: Patience = Patience()
) -> Verified:
    """Download and verify a file into `part` from the first address that provides it, continuing the bytes present.

    Addresses are of http, https or file. Proxies, certificates and passwords come from the environment (HTTPS_PROXY,
    REQUESTS_CA_BUNDLE, ~/.netrc). The progress line begins with `name`. If no address provides the file (Unobtainable)
    or the disk is full (ValueError), bytes of the right file remain for the next call.
    """
    complaints = []
    with requests.Session() as session:
        session.headers.update({"User-Agent": "onestep", "Accept-Encoding": "identity"})
        for address in addresses:
            try:
                return _Source(session, address, part, expected, name, patience).download()
            except (_Unusable, Mismatch) as error:
                complaints.append(str(error))
    raise Unobtainable("\n".join(complaints))


@dataclass(frozen=True)
class _Source:
    """One address of a file."""

    session: requests.Session
    address: str
    part: Part
    expected: Expected
    name: str
    patience: Patience

    def download(self) -> Verified:
        if self.address.startswith("file://"):
            return self._copy_local()
        part, fruitless, most, resumed = self.part, 0, self.part.size, False
        while True:
            resumed = resumed or part.size > 0
            try:
                self._attempt()
                return self._verify(resumed=resumed)
            except _Interrupted as error:
                interrupted = error
            # Only new bytes reset the count; a server that restarts from zero each time provides none.
            fruitless = 0 if part.size > most else fruitless + 1
            most, resumed = max(most, part.size), resumed and part.size > 0
            if fruitless >= self.patience.attempts:
                here = f" ({part.size:,} bytes are here; run again to continue)" if part.size else ""
                given_up = f"{interrupted}; {self.patience.attempts} attempts in a row without a new byte"
                raise _Unusable(f"{self.address}: {given_up}{here}")
            doubled = self.patience.pause * 2 ** max(0, fruitless - 1)
            time.sleep(min(self.patience.longest, max(doubled, interrupted.wait)))

    def _copy_local(self) -> Verified:
        path = Path(unquote(urlsplit(self.address).path))
        if not path.is_file():
            raise _Unusable(f"{self.address}: got no such file, expected one")
        self.expected.check(path, place=self.address)
        self.part.discard()
        _check_room(self.part.path.parent, path.stat().st_size)
        copy_or_link(path, self.part.path)
        return self.expected.check(self.part.path, place=self.address)

    def _verify(self, *, resumed: bool) -> Verified:
        try:
            return self.expected.check(self.part.path, place=self.address)
        except Mismatch as error:
            self.part.discard()
            # Pieces may be of two versions of the file; a download in one piece may still succeed.
            if resumed:
                raise _Interrupted(f"{error}; it was joined from pieces") from error
            raise

    def _attempt(self) -> None:
        """Request the missing bytes and append them to the part."""
        part, origin, headers = self.part, self.part.origin, {}
        version = origin.validator if origin.address == self.address else None
        # Without a digest, only this address' bytes of a named version can be continued without mixing two files.
        if not (self.expected.has_digest or version):
            part.discard()
        if part.size and origin.total == part.size and self.expected.has_digest:
            return
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if version:
                # If the file has changed, the server sends all of the new one.
                headers["If-Range"] = version
        try:
            response = self.session.get(self.address, headers=headers, stream=True, timeout=self.patience.silence)
        except requests.RequestException as error:
            raise _Interrupted(f"got no answer ({_innermost(error)}), expected the file") from error
        with response:
            if response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._check_status(response)
                self._receive(response)
            elif response.headers.get("Content-Range") != f"bytes */{part.size}":  # the part is not the complete file
                part.discard()
                raise _Interrupted("got no such range (HTTP 416), expected the rest of the file")

    def _check_status(self, response: requests.Response) -> None:
        found = f"got HTTP {response.status_code} {response.reason}, expected the file"
        if response.status_code in _RETRIED:
            wait = None
            with contextlib.suppress(urllib3.exceptions.InvalidHeader):
                wait = urllib3.Retry().get_retry_after(response.raw)
            raise _Interrupted(found, wait=wait or 0.0)
        if response.status_code not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise _Unusable(f"{self.address}: {found}")
        if response.headers.get("Content-Type", "").startswith("text/html") and not self.address.endswith("html"):
            raise _Unusable(f"{self.address}: got a web page (login or proxy?), expected the file")

    def _receive(self, response: requests.Response) -> None:
        part, expected, total = self.part, self.expected, self._begin(response)
        if total is not None and expected.size is not None and total != expected.size:
            raise _Unusable(f"{self.address}: got {total:,} bytes, expected {expected.size:,} ({expected.source})")
        # A chunked answer marks its end, so that a broken connection is not taken for it.
        chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        if not (total is not None or chunked or expected.has_digest or expected.size):
            raise _Unusable(f"{self.address}: got no length, expected one, or a size or sha256 in config.yaml")
        length = total or expected.size
        _check_room(part.path.parent, (length or 0) - part.size)
        bar = progress_bar(self.name, done=part.size, total=length)
        # Unbuffered: written bytes survive a kill.
        with open(part.path, "ab", buffering=0) as file, bar as progress:
            try:
                # As on the wire: a .gz remains one, whatever its Content-Encoding.
                for chunk in response.raw.stream(_CHUNK, decode_content=False):
                    _write(file, chunk, path=part.path)
                    progress.update(len(chunk))
            except (urllib3.exceptions.HTTPError, OSError) as error:
                wanted = "all" if total is None else f"{total:,}"
                reason = f"got {part.size:,} bytes and then {_innermost(error)}, expected {wanted}"
                raise _Interrupted(reason) from error
        if total is not None and part.size < total:
            raise _Interrupted(f"got {part.size:,} bytes, expected {total:,}")

    def _begin(self, response: requests.Response) -> int | None:
        """Continue or restart the part according to the answer; return the bytes of the complete file."""
        partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
        content_range = response.headers.get("Content-Range", "nothing")
        stated = content_range.rpartition("/")[2] if partial else response.headers.get("Content-Length", "")
        # A weak ETag does not identify bytes.
        etag = response.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        total = int(stated) if stated.isascii() and stated.isdigit() else None
        before, problem = self.part.origin if partial else Origin(), None
        if partial and not content_range.startswith(f"bytes {self.part.size}-"):
            problem = f"got the range {content_range}, expected bytes {self.part.size}-"
        elif before.address == self.address and validator and before.validator not in (None, validator):
            problem = f"got version {validator} of the file, expected {before.validator}: it changed"
        elif total is not None and before.total not in (None, total):
            problem = f"got {total:,} bytes in all, expected {before.total:,}: the file changed"
        if problem is not None or not partial:
            self.part.discard()
        if problem is not None:
            raise _Interrupted(problem)
        origin = Origin(address=self.address, validator=validator or before.validator, total=total)
        write_json(self.part.note, asdict(origin))
        return total


def _write(file: io.FileIO, chunk: bytes, *, path: Path) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        here = f"{error.strerror} after {path.stat().st_size:,} bytes"
        raise ValueError(f"{path}: {here}. Fix: make room and run again to continue") from error


def _check_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder}: got {free:,} bytes free, expected {needed:,} for the rest of the file")


def _innermost(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__


def progress_bar(name: str, *, done: int, total: int | None, stream: TextIO | None = None, every: float = 10.0) -> Bar:
    """Return a progress bar in bytes with rate and remaining time; without a terminal, a line every `every` seconds."""
    stream = sys.stderr if stream is None else stream
    every = 0.2 if stream.isatty() else every
    return Bar(
        desc=name,
        initial=done,
        total=total,
        unit="B",
        unit_scale=True,
        file=stream if stream.isatty() else Lines(stream),
        mininterval=every,
        miniters=0,
        delay=every,
    )
