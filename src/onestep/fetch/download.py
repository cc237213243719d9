"""Download a file over unreliable connections: it arrives complete and verified, or the error lists what arrived."""

from __future__ import annotations

import email.utils
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from tqdm import tqdm

from onestep.fetch.digests import Expected, Mismatch, Verified
from onestep.fetch.local_files import copy_or_link
from onestep.files import write_json
from onestep.progress import Lines

_CHUNK = 2**16
_RETRIED = (408, 425, 429, 500, 502, 503, 504)


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
    """Origin of a part: address, version of the file (strong ETag, or date), bytes of the complete file."""

    address: str
    validator: str | None
    total: int | None


@dataclass(frozen=True, kw_only=True)
class Part:
    """First bytes of a file, in `{name}.part`; their origin is beside it in `{name}.origin`."""

    path: Path

    @property
    def size(self) -> int:
        """Bytes present."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def origin(self) -> Origin | None:
        """Their origin; None if unknown, which makes them useless without a known digest."""
        try:
            return Origin(**json.loads(self._note.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".origin")

    def set_origin(self, origin: Origin) -> None:
        """Record the origin, before the bytes arrive."""
        write_json(self._note, asdict(origin))

    def discard(self) -> None:
        """Delete the bytes, then their origin, so that no origin is ever recorded for other bytes."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def publish(self, path: Path) -> None:
        """Flush the complete file to disk and move it to its path."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path, path)
        self._note.unlink(missing_ok=True)


def download(
    addresses: Sequence[str], *, part: Part, expected: Expected, name: str, patience: Patience = Patience()
) -> Verified:
    """Download and verify a file into `part` from the first address that provides it, continuing the bytes present.

    Addresses are of http, https or file; retries are limited per address. Proxies, certificates and passwords come from
    the environment (HTTPS_PROXY, REQUESTS_CA_BUNDLE, ~/.netrc). The progress line begins with `name`.

    Raises:
        Unobtainable: No address provides it. Bytes of the right file remain for the next call.
        ValueError: The disk is full; the bytes remain as well.
    """
    complaints = []
    with requests.Session() as session:
        session.headers.update({"User-Agent": "onestep", "Accept-Encoding": "identity"})
        for address in addresses:
            source = _Source(address, session=session, part=part, expected=expected, name=name, patience=patience)
            try:
                return source.download()
            except (_Unusable, Mismatch) as error:
                complaints.append(str(error))
    raise Unobtainable("\n".join(complaints))


@dataclass(frozen=True)
class _Source:
    """One address of a file."""

    address: str
    _: KW_ONLY
    session: requests.Session
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
            # The pieces may be of two versions of the file; a download in one piece may still succeed.
            if resumed:
                raise _Interrupted(f"{error}; it was joined from pieces") from error
            raise

    def _attempt(self) -> None:
        """Request the missing bytes and append them to the part."""
        part, origin = self.part, self.part.origin
        own = origin if origin is not None and origin.address == self.address and origin.validator else None
        # Without a digest, only this address' bytes of a named version can be continued without mixing two files.
        if part.size and not self.expected.has_digest and own is None:
            part.discard()
        if part.size and origin is not None and origin.total == part.size and self.expected.has_digest:
            return
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        if part.size and own is not None and own.validator is not None:
            # If the file has changed, the server sends all of the new one.
            headers["If-Range"] = own.validator
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
            raise _Interrupted(found, wait=_retry_after(response.headers.get("Retry-After", "")))
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
        origin, before = Origin(address=self.address, validator=validator, total=total), self.part.origin
        if not partial:
            self.part.discard()
            self.part.set_origin(origin)
            return total
        problem = None
        if not content_range.startswith(f"bytes {self.part.size}-"):
            problem = f"got the range {content_range}, expected bytes {self.part.size}-"
        elif before is not None and before.address == self.address and _differ(before.validator, validator):
            problem = f"got version {validator} of the file, expected {before.validator}: it changed"
        elif before is not None and _differ(before.total, total):
            problem = f"got {total:,} bytes in all, expected {before.total:,}: the file changed"
        if problem is not None:
            self.part.discard()
            raise _Interrupted(problem)
        self.part.set_origin(replace(origin, validator=validator or (before.validator if before else None)))
        return total


def _differ(first: object, second: object) -> bool:
    return None not in (first, second) and first != second


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


def _retry_after(text: str) -> float:
    """Return the seconds requested by a Retry-After header; 0 without one."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, until.timestamp() - time.time())


def _innermost(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__


def progress_bar(name: str, *, done: int, total: int | None, stream: TextIO | None = None, every: float = 10.0) -> tqdm:
    """Return a progress bar in bytes with rate and remaining time; without a terminal, a line every `every` seconds."""
    stream = sys.stderr if stream is None else stream
    every = 0.2 if stream.isatty() else every
    return tqdm(
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
