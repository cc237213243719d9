"""Downloads from a real server that misbehaves: the file arrives complete, or the error names what arrived."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import misbehaving_server as does
import pytest
from misbehaving_server import CONTENT, OTHER, SHA256, running

from onestep.fetch.download import Expected, Part, Patience, download, progress_bar

KNOWN = Expected(source="config.yaml", sha256=SHA256)
UNKNOWN = Expected(source="config.yaml")
QUICK = Patience(attempts=3, pause=0.01, longest=0.05, silence=0.3)


def fetch(addresses, *, part, expected=KNOWN):
    addresses = [addresses] if isinstance(addresses, str) else addresses
    return download(addresses, part=part, expected=expected, name="x.bin", patience=QUICK)


@pytest.fixture
def part(work):
    return Part(path=work / "x.bin.part")


@pytest.mark.parametrize("expected", [KNOWN, UNKNOWN], ids=["known", "trusted"])
@pytest.mark.parametrize(
    ("behaviours", "ranges"),
    {
        "well": ([], [None]),
        "drops": ([does.dropping(100_000), does.dropping(50_000)], [None, "bytes=100000-", "bytes=150000-"]),
        "drops often": ([does.dropping(40_000)] * 7, [None, *[f"bytes={40_000 * n}-" for n in range(1, 8)]]),
        "ignores ranges": ([does.dropping(100_000), does.ignoring_ranges], [None, "bytes=100000-"]),
        "another range": ([does.dropping(100_000), does.lying_range], [None, "bytes=100000-", None]),
        "promises too much": ([does.lying_about_length(9)], [None, "bytes=300000-"]),
        "503, then fine": ([does.status(503, Retry_After=0), does.status(429)], [None] * 3),
        "slow": ([does.slowly(60_000, 0.05)], [None]),
        "silent": ([does.silent], [None, "bytes=131072-"]),
        "hangs up at once": ([does.dropping(0)], [None, None]),
        "chunks": ([does.chunked()], [None]),
    }.values(),
    ids=lambda value: None,
)
def test_the_file_arrives_complete(server, part, behaviours, ranges, expected):
    served = server.put("/x.bin", CONTENT, *behaviours)
    verified = fetch(server.address("/x.bin"), part=part, expected=expected)
    assert (part.path.read_bytes(), verified.sha256, verified.size) == (CONTENT, SHA256, len(CONTENT))
    assert served.ranges == ranges


def test_a_broken_chunk_is_no_end(server, part):
    server.put("/x.bin", CONTENT, does.chunked(whole=False))
    fetch(server.address("/x.bin"), part=part, expected=UNKNOWN)
    assert part.path.read_bytes() == CONTENT


def test_redirects_are_followed_and_ranges_with_them(server, part):
    server.put("/old", b"", *[does.status(302, Location=server.address("/x.bin"))] * 2)
    served = server.put("/x.bin", CONTENT, does.dropping(100_000))
    fetch(server.address("/old"), part=part, expected=UNKNOWN)
    assert part.path.read_bytes() == CONTENT and served.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("expected", [Expected(source="x", size=len(OTHER)), UNKNOWN], ids=["size", "nothing"])
@pytest.mark.parametrize("etag", ['"one"', None], ids=["etag", "no etag"])
def test_a_file_that_changes_between_two_parts_is_never_mixed(server, part, expected, etag):
    changing = does.changing(OTHER, '"two"' if etag else None)
    server.put("/x.bin", CONTENT[: len(OTHER)], does.dropping(100_000), changing, etag=etag)
    fetch(server.address("/x.bin"), part=part, expected=expected)
    assert part.path.read_bytes() == OTHER


def test_pieces_that_do_not_fit_together_are_fetched_in_one_go(server, part):
    part.path.write_bytes(OTHER[:5_000])
    served = server.put("/x.bin", CONTENT)
    fetch(server.address("/x.bin"), part=part)
    assert part.path.read_bytes() == CONTENT and served.ranges == ["bytes=5000-", None]


def test_a_part_of_unknown_origin_is_not_continued_without_a_digest(server, part):
    part.path.write_bytes(OTHER[:5_000])
    served = server.put("/x.bin", CONTENT)
    fetch(server.address("/x.bin"), part=part, expected=UNKNOWN)
    assert part.path.read_bytes() == CONTENT and served.ranges == [None]


def test_a_part_from_one_address_is_continued_from_the_next_with_a_known_digest(server, part):
    server.put("/a/x.bin", CONTENT, does.dropping(100_000), *[does.status(503)] * 9)
    served = server.put("/b/x.bin", CONTENT, etag='"elsewhere"')
    fetch([server.address("/a/x.bin"), server.address("/b/x.bin")], part=part)
    assert part.path.read_bytes() == CONTENT and served.ranges == ["bytes=100000-"]


@pytest.mark.parametrize(
    ("behaviour", "expected", "parts"),
    {
        "wrong digest": (does.changing(OTHER, '"two"'), KNOWN, (SHA256, "(config.yaml)")),
        "wrong beginning": (
            does.well,
            Expected(source="registry", sha256_begins="00"),
            (SHA256, "expected 00...", "(registry)"),
        ),
        "wrong md5": (does.well, Expected(source="registry", md5="00"), ("md5", "expected 00", "(registry)")),
        "wrong size": (
            does.well,
            Expected(source="registry", size=7),
            ("300,000 bytes", "expected 7", "(registry)"),
        ),
        "too short a length": (does.lying_about_length(-9), KNOWN, ("sha256", f"expected {SHA256}")),
        "never whole": (
            does.lying_about_length(9),
            Expected(source="registry", size=len(CONTENT) + 9),
            ("300,000 bytes", "expected 300,009", "3 attempts"),
        ),
        "absent": (does.status(404), KNOWN, ("HTTP 404 Not Found",)),
        "down": (does.status(503), KNOWN, ("HTTP 503 Service Unavailable", "3 attempts")),
        "a web page": (does.web_page, UNKNOWN, ("web page",)),
        "no length": (does.without_length, UNKNOWN, ("no length", "sha256")),
    }.values(),
)
def test_a_clear_error_names_address_found_and_expected(server, part, behaviour, expected, parts):
    server.put("/x.bin", CONTENT, *[behaviour] * 9, etag=None)
    address = server.address("/x.bin")
    with pytest.raises(ValueError, match=f"^{address}: ") as error:
        fetch(address, part=part, expected=expected)
    assert all(each in str(error.value) for each in parts), error.value


def test_no_server_is_a_clear_error(part):
    with running() as server:
        address = server.address("/x.bin")
    with pytest.raises(ValueError, match=f"^{address}: .*Connection refused.*3 attempts"):
        fetch(address, part=part)


def test_every_address_is_tried_and_has_its_own_error(server, part):
    server.put("/a", CONTENT, does.status(403))
    server.put("/b", OTHER)
    server.put("/c", CONTENT)
    addresses = [server.address("/a"), server.address("/b"), Path("absent").absolute().as_uri()]
    with pytest.raises(ValueError) as error:
        fetch(addresses, part=part)
    lines = str(error.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == addresses
    server.files["/a"].behaviours.append(does.status(403))
    fetch([*addresses, server.address("/c")], part=part)
    assert part.path.read_bytes() == CONTENT


def test_a_file_of_this_machine_is_an_address(work, part):
    (work / "a b.bin").write_bytes(CONTENT)
    fetch((work / "a b.bin").as_uri(), part=part)
    assert part.path.read_bytes() == CONTENT
    (work / "a b.bin").write_bytes(OTHER)
    with pytest.raises(ValueError, match=r"^file:///.*a%20b.bin: .*sha256"):
        fetch((work / "a b.bin").as_uri(), part=part)


def test_a_proxy_of_the_environment_is_used(server, part, monkeypatch):
    # The name resolves nowhere, so only the proxy can have answered.
    monkeypatch.setenv("HTTP_PROXY", server.address(""))
    server.put("/x.bin", CONTENT)
    fetch("http://host.invalid/x.bin", part=part)
    assert part.path.read_bytes() == CONTENT


def test_room_is_checked_before_the_first_byte(server, part):
    behaviour = does.lying_about_length(10**16)
    server.put("/x.bin", CONTENT, behaviour)
    with pytest.raises(ValueError, match=r"[\d,]+ bytes free, expected 10,000,000,000,300,000 "):
        fetch(server.address("/x.bin"), part=part, expected=UNKNOWN)
    assert part.size == 0


def test_progress_without_a_terminal_is_lines_with_rate_and_remaining_time(server, part, capsys):
    stream = io.StringIO()
    with progress_bar("x.pkl", done=100_000_000, total=200_000_000, stream=stream, every=0.01) as progress:
        for _ in range(5):
            time.sleep(0.02)
            progress.update(10_000_000)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 4 and all(line.startswith("x.pkl: ") and line.endswith("B/s]") for line in lines)
    assert "150M/200M" in lines[-1] and re.search(r"\[\d\d:\d\d<\d\d:\d\d, ", lines[-1])


def test_a_short_download_prints_no_progress_line(server, part, capfd):
    server.put("/x.bin", CONTENT)
    fetch(server.address("/x.bin"), part=part)
    assert capfd.readouterr().err == ""


def test_on_a_terminal_a_bar_replaces_itself():
    stream = io.StringIO()
    stream.isatty = lambda: True
    with progress_bar("x.pkl", done=0, total=200_000_000, stream=stream) as progress:
        time.sleep(0.3)
        progress.update(50_000_000)
    assert "\rx.pkl:  25%|" in stream.getvalue()
