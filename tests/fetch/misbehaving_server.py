"""A real HTTP server on loopback with a scripted behaviour for each request, correct or faulty."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(280_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Behaviour = Callable[["Handler", "Served"], None]


@dataclass
class Served:
    """A file of the server: content, behaviours for the next requests, and the ranges requested so far."""

    content: bytes
    etag: str | None = '"one"'
    behaviours: list[Behaviour] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """Answers by the file's next behaviour, in the end by `well`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        served = self.server.files[urlsplit(self.path).path]
        served.ranges.append(self.headers["Range"])
        behave = served.behaviours.pop(0) if served.behaviours else well
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            behave(self, served)

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def head(self, status: int, **headers: object) -> None:
        """Send a status and headers; `_` means `-`."""
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def start(self, served: Served) -> int:
        """Return the first requested byte; 0 if the client has another version of the file."""
        asked, version = self.headers["Range"], self.headers["If-Range"]
        if asked is None or version not in (None, served.etag):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def head_for(self, served: Served, start: int) -> None:
        """Send what belongs before the bytes from `start` on."""
        total = len(served.content)
        if start:
            extent = f"bytes {start}-{total - 1}/{total}"
            self.head(206, Content_Length=total - start, Content_Range=extent, ETag=served.etag)
        else:
            self.head(200, Content_Length=total, ETag=served.etag, Content_Type="application/octet-stream")


def well(handler: Handler, served: Served) -> None:
    """Serve as a server should."""
    start = handler.start(served)
    if start >= len(served.content):
        handler.head(416, Content_Range=f"bytes */{len(served.content)}", Content_Length=0)
        return
    handler.head_for(served, start)
    handler.wfile.write(served.content[start:])


def dropping(count: int) -> Behaviour:
    """Promise everything, send `count` bytes, hang up."""

    def behave(handler: Handler, served: Served) -> None:
        start = handler.start(served)
        handler.head_for(served, start)
        handler.wfile.write(served.content[start : start + count])

    return behave


def ignoring_ranges(handler: Handler, served: Served) -> None:
    handler.head_for(served, 0)
    handler.wfile.write(served.content)


def lying_range(handler: Handler, served: Served) -> None:
    """Answer with other bytes than requested, with their range."""
    total = len(served.content)
    handler.head(206, Content_Length=total - 1, Content_Range=f"bytes 1-{total - 1}/{total}", ETag=served.etag)
    handler.wfile.write(served.content[1:])


def lying_about_length(more: int) -> Behaviour:
    """Promise `more` bytes than there are (or less)."""

    def behave(handler: Handler, served: Served) -> None:
        handler.head(200, Content_Length=len(served.content) + more, ETag=served.etag)
        handler.wfile.write(served.content)

    return behave


def status(code: int, **headers: object) -> Behaviour:
    return lambda handler, served: handler.head(code, Content_Length=0, **headers)


def changing(content: bytes, etag: str) -> Behaviour:
    """Put another file there, and serve that."""

    def behave(handler: Handler, served: Served) -> None:
        served.content, served.etag = content, etag
        well(handler, served)

    return behave


def slowly(piece: int, pause: float) -> Behaviour:
    def behave(handler: Handler, served: Served) -> None:
        start = handler.start(served)
        handler.head_for(served, start)
        for place in range(start, len(served.content), piece):
            handler.wfile.write(served.content[place : place + piece])
            time.sleep(pause)

    return behave


def silent(handler: Handler, served: Served) -> None:
    """Send half, then nothing for longer than any client waits."""
    handler.head_for(served, 0)
    handler.wfile.write(served.content[: len(served.content) // 2])
    time.sleep(1.0)


def web_page(handler: Handler, served: Served) -> None:
    handler.head(200, Content_Length=8, Content_Type="text/html; charset=utf-8")
    handler.wfile.write(b"Sign in!")


def chunked(*, whole: bool = True) -> Behaviour:
    """Serve without a length, in chunks; without the end mark if not `whole`."""

    def behave(handler: Handler, served: Served) -> None:
        handler.head(200, Transfer_Encoding="chunked", ETag=served.etag)
        content = served.content if whole else served.content[:-1]
        handler.wfile.write(b"%x\r\n" % len(content) + content + b"\r\n" + (b"0\r\n\r\n" if whole else b""))

    return behave


def without_length(handler: Handler, served: Served) -> None:
    """Serve without a length: the file ends with the connection."""
    handler.head(200)
    handler.wfile.write(served.content)


class Server(ThreadingHTTPServer):
    """The server; `files` by path."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def put(self, path: str, content: bytes, *behaviours: Behaviour, etag: str | None = '"one"') -> Served:
        self.files[path] = Served(content, etag=etag, behaviours=list(behaviours))
        return self.files[path]


@contextlib.contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
