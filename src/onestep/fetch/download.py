"""A file from an address that may drop, lie, change or be slow: it arrives whole, or the error says what came."""

from __future__ import annotations

import email.utils
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from onestep.fetch.digests import Expected, Mismatch, Verified
from onestep.fetch.partial import Origin, Part
from onestep.fetch.placing import copy_or_link
from onestep.fetch.progress import Progress

_PIECE = 2**16
_WORTH_RETRYING = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to put up with a server.

    Attributes:
        attempts: In a row that bring no further byte.
        pause: Seconds before the second attempt; it doubles from attempt to attempt.
        longest: The longest pause, in seconds; a server that asks for more (Retry-After) gets no more.
        silence: Seconds without a byte after which a connection counts as dead.
    """

    attempts: int = 6
    pause: float = 1.0
    longest: float = 60.0
    silence: float = 60.0


class Unobtainable(ValueError):
    """No address brought the file; a line for each: the address, what was found, what was expected."""


class _Unusable(Exception):
    """An address from which the file will not come; the next one is tried."""


class _Interrupted(Exception):
    """An attempt that ended early; the next one continues.

    Args:
        reason: What happened.
        wait: Seconds that the server asks for.
    """

    def __init__(self, reason: str, *, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def download(
    addresses: Sequence[str], *, part: Part, expected: Expected, progress: Progress, patience: Patience | None = None
) -> Verified:
    """Bring a file into `part`, from the first address that has it; what is there already is continued.

    Proxies, certificates and passwords are those of the environment (HTTPS_PROXY, REQUESTS_CA_BUNDLE, ~/.netrc).

    Args:
        addresses: http, https or file; best first.
        part: Where it grows.
        expected: What is known of it.
        progress: Is told how far it is.
        patience: With each address.

    Returns:
        What it is; it is whole and the expected one.

    Raises:
        Unobtainable: No address brought it. What has arrived of the right file stays for the next time.
        ValueError: There is no room; what has arrived stays as well.
    """
    complaints = []
    with requests.Session() as session:
        session.headers.update({"User-Agent": "onestep", "Accept-Encoding": "identity"})
        for address in addresses:
            source = _Source(address=address, session=session, patience=patience or Patience())
            try:
                return source.bring(part, expected=expected, progress=progress)
            except (_Unusable, Mismatch) as error:
                complaints.append(str(error))
            finally:
                progress.end()
    raise Unobtainable("\n".join(complaints))


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One address."""

    address: str
    session: requests.Session
    patience: Patience

    def bring(self, part: Part, *, expected: Expected, progress: Progress) -> Verified:
        """Fill the part and verify it; what is not the expected file is thrown away."""
        if self.address.startswith("file://"):
            return self._take_local(part, expected=expected)
        fruitless, most, pieces = 0, part.size, 0
        while True:
            pieces += part.size > 0
            try:
                self._attempt(part, expected=expected, progress=progress)
                return self._verified(part, expected=expected, pieced=pieces > 0)
            except _Interrupted as error:
                interrupted = error
            # Bytes that are new are worth another attempt; a server that begins anew each time brings none.
            fruitless = 0 if part.size > most else fruitless + 1
            most = max(most, part.size)
            pieces = pieces if part.size else 0
            if fruitless >= self.patience.attempts:
                raise _Unusable(self._gave_up(interrupted, part=part))
            time.sleep(self._pause(fruitless, interrupted))

    def _take_local(self, part: Part, *, expected: Expected) -> Verified:
        path = Path(unquote(urlsplit(self.address).path))
        if not path.is_file():
            raise _Unusable(f"{self.address}: found no such file, expected it there")
        expected.check(path, called=self.address)
        part.discard()
        part.path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(part.path.parent, path.stat().st_size)
        copy_or_link(path, part.path)
        return expected.check(part.path, called=self.address)

    def _verified(self, part: Part, *, expected: Expected, pieced: bool) -> Verified:
        try:
            return expected.check(part.path, called=self.address)
        except Mismatch as error:
            part.discard()
            # Pieces that do not fit together may be of two versions of the file; in one go it may still arrive.
            if pieced:
                raise _Interrupted(f"{error}; it had come in pieces") from error
            raise

    def _gave_up(self, interrupted: _Interrupted, *, part: Part) -> str:
        return f"{self.address}: {interrupted}; {self.patience.attempts} attempts in a row brought nothing new" + (
            f" ({part.size:,} bytes are here; run again to continue)" if part.size else ""
        )

    def _pause(self, fruitless: int, interrupted: _Interrupted) -> float:
        doubled = self.patience.pause * 2 ** max(0, fruitless - 1)
        return min(self.patience.longest, max(doubled, interrupted.wait))

    def _attempt(self, part: Part, *, expected: Expected, progress: Progress) -> None:
        """Ask for what is missing and append it to the part."""
        if not self._of_use(part, expected=expected):
            part.discard()
        before = part.origin
        if before is not None and part.size and before.total == part.size and expected.settles:
            return
        try:
            response = self.session.get(
                self.address, headers=self._range(part), stream=True, timeout=self.patience.silence
            )
        except requests.RequestException as error:
            raise _Interrupted(f"found no answer ({_innermost(error)}), expected the file") from error
        with response:
            if self._is_whole_already(response, part=part):
                return
            self._check_status(response)
            self._receive(response, part=part, expected=expected, progress=progress)

    def _of_use(self, part: Part, *, expected: Expected) -> bool:
        """Whether the bytes that are here can be continued from this address without mixing two files."""
        origin = part.origin
        if expected.settles or not part.size:
            return True
        return origin is not None and origin.address == self.address and origin.validator is not None

    def _range(self, part: Part) -> dict[str, str]:
        origin = part.origin
        if not part.size:
            return {}
        same = origin is not None and origin.address == self.address and origin.validator is not None
        # If-Range: where the file has changed, the server sends all of the new one.
        return {"Range": f"bytes={part.size}-"} | ({"If-Range": origin.validator} if same else {})

    def _is_whole_already(self, response: requests.Response, *, part: Part) -> bool:
        if response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return False
        said = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
        if said and int(said[1]) == part.size:
            return True
        part.discard()
        raise _Interrupted("found no range as the one asked for (HTTP 416), expected the rest of the file")

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        found = f"found HTTP {status} {response.reason}, expected the file"
        if status in _WORTH_RETRYING:
            raise _Interrupted(found, wait=_retry_after(response.headers.get("Retry-After", "")))
        if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise _Unusable(f"{self.address}: {found}")
        if response.headers.get("Content-Type", "").startswith("text/html") and not self.address.endswith("html"):
            raise _Unusable(f"{self.address}: found a web page, expected the file; is a login or a proxy in the way?")

    def _receive(self, response: requests.Response, *, part: Part, expected: Expected, progress: Progress) -> None:
        total = self._begin(response, part=part)
        if None not in (total, expected.size) and total != expected.size:
            said = f"found {total:,} bytes, expected {expected.size:,} ({expected.said_by})"
            raise _Unusable(f"{self.address}: {said}")
        if not (total is not None or _is_chunked(response) or expected.settles or expected.size):
            raise _Unusable(f"{self.address}: found no length, expected one, or a size or sha256 in config.yaml")
        _check_room(part.path.parent, (total or expected.size or 0) - part.size)
        progress.begin(part.size, total=total or expected.size)
        with part.appending() as file:
            for piece in _pieces(response, part=part, total=total):
                _write(file, piece, path=part.path)
                progress.advance(len(piece))
        if total is not None and part.size < total:
            raise _Interrupted(f"found {part.size:,} bytes, expected {total:,}")

    def _begin(self, response: requests.Response, *, part: Part) -> int | None:
        """Make the part fit the answer, which goes on from its end or begins anew; return the whole file's bytes."""
        origin = Origin(address=self.address, validator=_validator(response), total=_whole_length(response))
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            self._check_continues(response, part=part, origin=origin)
            validator = origin.validator or (part.origin.validator if part.origin else None)
            part.note(replace(origin, validator=validator))
        else:
            part.discard()
            part.note(origin)
        return origin.total

    def _check_continues(self, response: requests.Response, *, part: Part, origin: Origin) -> None:
        before, said = part.origin, response.headers.get("Content-Range", "nothing")
        if not said.startswith(f"bytes {part.size}-"):
            asked = part.size
            part.discard()
            raise _Interrupted(f"found the range {said}, expected bytes {asked}-")
        same_place = before is not None and before.address == self.address
        if same_place and None not in (before.validator, origin.validator) and before.validator != origin.validator:
            part.discard()
            raise _Interrupted(f"found version {origin.validator} of the file, expected {before.validator}: it changed")
        if before is not None and None not in (before.total, origin.total) and before.total != origin.total:
            part.discard()
            raise _Interrupted(f"found {origin.total:,} bytes in all, expected {before.total:,}: the file changed")


def _validator(response: requests.Response) -> str | None:
    """Return the strongest name the server has for this version of the file; weak ETags do not vouch for bytes."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _whole_length(response: requests.Response) -> int | None:
    """Return the bytes of the whole file as the server says."""
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        said = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        said = response.headers.get("Content-Length", "")
    return int(said) if said.isascii() and said.isdigit() else None


def _is_chunked(response: requests.Response) -> bool:
    """Whether the end of the answer is marked, so that a broken connection cannot be taken for it."""
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()


def _pieces(response: requests.Response, *, part: Part, total: int | None) -> Iterator[bytes]:
    """Yield the answer as it is on the wire: a .gz stays one, whatever its Content-Encoding says."""
    try:
        yield from response.raw.stream(_PIECE, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        expected = "all" if total is None else f"{total:,}"
        said = f"found {part.size:,} bytes and then {_innermost(error)}, expected {expected}"
        raise _Interrupted(said) from error


def _write(file: BinaryIO, piece: bytes, *, path: Path) -> None:
    view = memoryview(piece)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        room = "make room and run again: it goes on from there"
        raise ValueError(f"{path}: {error.strerror} after {path.stat().st_size:,} bytes; {room}") from error


def _check_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder}: found {free:,} bytes free, expected {needed:,} for what is to come; make room")


def _retry_after(text: str) -> float:
    """Return the seconds that a server asks for; 0 where it asks for none."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _innermost(error: BaseException) -> str:
    """Return what went wrong at the bottom, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__
