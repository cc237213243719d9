"""Downloads from a real server that misbehaves: the file arrives whole, or the error names what came in its place."""

from __future__ import annotations

from pathlib import Path

import misbehaving_server as does
import pytest
from misbehaving_server import CONTENT, OTHER, SHA256, running

from onestep.fetch.digests import Expected
from onestep.fetch.download import Patience, download
from onestep.fetch.partial import Part
from onestep.fetch.progress import Progress

KNOWN = Expected(said_by="config.yaml", sha256=SHA256)
UNKNOWN = Expected(said_by="config.yaml")
QUICK = Patience(attempts=3, pause=0.01, longest=0.05, silence=0.3)


def bring(addresses, *, part, expected=KNOWN):
    addresses = [addresses] if isinstance(addresses, str) else addresses
    return download(addresses, part=part, expected=expected, progress=Progress("x.bin"), patience=QUICK)


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
def test_the_file_arrives_whole(server, part, behaviours, ranges, expected):
    served = server.put("/x.bin", CONTENT, *behaviours)
    verified = bring(server.address("/x.bin"), part=part, expected=expected)
    assert (part.path.read_bytes(), verified.sha256, verified.size) == (CONTENT, SHA256, len(CONTENT))
    assert served.ranges == ranges


def test_a_broken_chunk_is_no_end(server, part):
    server.put("/x.bin", CONTENT, does.chunked(whole=False))
    bring(server.address("/x.bin"), part=part, expected=UNKNOWN)
    assert part.path.read_bytes() == CONTENT


def test_redirects_are_followed_and_ranges_with_them(server, part):
    server.put("/old", b"", *[does.status(302, Location=server.address("/x.bin"))] * 2)
    served = server.put("/x.bin", CONTENT, does.dropping(100_000))
    bring(server.address("/old"), part=part, expected=UNKNOWN)
    assert part.path.read_bytes() == CONTENT and served.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("expected", [Expected(said_by="x", size=len(OTHER)), UNKNOWN], ids=["size", "nothing"])
@pytest.mark.parametrize("etag", ['"one"', None], ids=["etag", "no etag"])
def test_a_file_that_changes_between_two_parts_is_never_mixed(server, part, expected, etag):
    changing = does.changing(OTHER, '"two"' if etag else None)
    server.put("/x.bin", CONTENT[: len(OTHER)], does.dropping(100_000), changing, etag=etag)
    bring(server.address("/x.bin"), part=part, expected=expected)
    assert part.path.read_bytes() == OTHER


def test_pieces_that_do_not_fit_together_are_fetched_in_one_go(server, part):
    part.path.write_bytes(OTHER[:5_000])
    served = server.put("/x.bin", CONTENT)
    bring(server.address("/x.bin"), part=part)
    assert part.path.read_bytes() == CONTENT and served.ranges == ["bytes=5000-", None]


def test_a_part_of_unknown_origin_is_not_continued_without_a_digest(server, part):
    part.path.write_bytes(OTHER[:5_000])
    served = server.put("/x.bin", CONTENT)
    bring(server.address("/x.bin"), part=part, expected=UNKNOWN)
    assert part.path.read_bytes() == CONTENT and served.ranges == [None]


def test_a_part_from_one_address_is_continued_from_the_next_if_a_digest_can_judge(server, part):
    server.put("/a/x.bin", CONTENT, does.dropping(100_000), *[does.status(503)] * 9)
    served = server.put("/b/x.bin", CONTENT, etag='"elsewhere"')
    bring([server.address("/a/x.bin"), server.address("/b/x.bin")], part=part)
    assert part.path.read_bytes() == CONTENT and served.ranges == ["bytes=100000-"]


@pytest.mark.parametrize(
    ("behaviour", "expected", "said"),
    {
        "wrong digest": (does.changing(OTHER, '"two"'), KNOWN, rf"found sha256 \w{{64}}, expected {SHA256} \(config"),
        "wrong beginning": (
            does.well,
            Expected(said_by="registry", sha256_begins="00"),
            rf"found sha256 {SHA256}, expected 00\.\.\. \(registry\)",
        ),
        "wrong md5": (does.well, Expected(said_by="registry", md5="00"), r"found md5 \w{32}, expected 00 \(registry\)"),
        "wrong size": (
            does.well,
            Expected(said_by="registry", size=7),
            r"found 300,000 bytes, expected 7 \(reg",
        ),
        "too short a length": (does.lying_about_length(-9), KNOWN, rf"found sha256 \w{{64}}, expected {SHA256}"),
        "never whole": (
            does.lying_about_length(9),
            Expected(said_by="registry", size=len(CONTENT) + 9),
            r"found 300,000 bytes and then .*, expected 300,009; 3 attempts in a row brought nothing new",
        ),
        "absent": (does.status(404), KNOWN, "found HTTP 404 Not Found, expected the file"),
        "down": (does.status(503), KNOWN, "found HTTP 503 Service Unavailable, expected the file; 3 attempts in a row"),
        "a web page": (does.web_page, UNKNOWN, "found a web page, expected the file"),
        "no length": (does.without_length, UNKNOWN, "found no length, expected one, or a size or sha256"),
    }.values(),
)
def test_a_clear_error_names_address_found_and_expected(server, part, behaviour, expected, said):
    server.put("/x.bin", CONTENT, *[behaviour] * 9, etag=None)
    address = server.address("/x.bin")
    with pytest.raises(ValueError, match=f"^{address}: {said}"):
        bring(address, part=part, expected=expected)


def test_no_server_is_a_clear_error(part):
    with running() as server:
        address = server.address("/x.bin")
    with pytest.raises(ValueError, match=f"^{address}: found no answer .*Connection refused.*3 attempts"):
        bring(address, part=part)


def test_every_address_is_tried_and_each_complains_for_itself(server, part):
    server.put("/a", CONTENT, does.status(403))
    server.put("/b", OTHER)
    server.put("/c", CONTENT)
    addresses = [server.address("/a"), server.address("/b"), Path("absent").absolute().as_uri()]
    with pytest.raises(ValueError) as error:
        bring(addresses, part=part)
    lines = str(error.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == addresses
    server.files["/a"].behaviours.append(does.status(403))
    bring([*addresses, server.address("/c")], part=part)
    assert part.path.read_bytes() == CONTENT


def test_a_file_of_this_machine_may_stand_in(work, part):
    (work / "a b.bin").write_bytes(CONTENT)
    bring((work / "a b.bin").as_uri(), part=part)
    assert part.path.read_bytes() == CONTENT
    (work / "a b.bin").write_bytes(OTHER)
    with pytest.raises(ValueError, match=r"^file:///.*a%20b.bin: found sha256"):
        bring((work / "a b.bin").as_uri(), part=part)


def test_a_proxy_of_the_environment_is_used(server, part, monkeypatch):
    # The name resolves nowhere, so only the proxy can have answered.
    monkeypatch.setenv("HTTP_PROXY", server.address(""))
    server.put("/x.bin", CONTENT)
    bring("http://host.invalid/x.bin", part=part)
    assert part.path.read_bytes() == CONTENT


def test_room_is_checked_before_the_first_byte(server, part):
    behaviour = does.lying_about_length(10**16)
    server.put("/x.bin", CONTENT, behaviour)
    with pytest.raises(ValueError, match=r"found [\d,]+ bytes free, expected 10,000,000,000,300,000 for"):
        bring(server.address("/x.bin"), part=part, expected=UNKNOWN)
    assert part.size == 0
