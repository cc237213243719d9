"""What a download tells of itself, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from onestep.fetch.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    """A clock that stands still until it is moved."""

    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


def test_on_a_terminal_a_bar_grows_with_rate_and_time_left(clock):
    stream = Terminal()
    progress = Progress("x.pkl", stream=stream, clock=clock)
    progress.begin(0, total=200_000_000)
    clock.now += 5
    progress.advance(50_000_000)
    progress.end()
    line = "x.pkl  [######..................]   25.0 %  50.0 of 200.0 MB  10.0 MB/s  0:00:15 left"
    assert stream.getvalue() == f"\r\x1b[K{line}\r\x1b[K{line}\n"


def test_elsewhere_a_line_every_ten_seconds(clock):
    stream = io.StringIO()
    progress = Progress("x.pkl", stream=stream, clock=clock)
    progress.begin(100_000_000, total=200_000_000)
    for _ in range(25):
        clock.now += 1
        progress.advance(1_000_000)
    progress.end()
    assert stream.getvalue().splitlines() == [
        "x.pkl   55.0 %  110.0 of 200.0 MB  1.0 MB/s  0:01:30 left",
        "x.pkl   60.0 %  120.0 of 200.0 MB  1.0 MB/s  0:01:20 left",
    ]


def test_without_a_total_there_is_no_share(clock):
    stream = io.StringIO()
    progress = Progress("x.pkl", stream=stream, clock=clock)
    clock.now += 10
    progress.advance(5_000_000)
    assert stream.getvalue() == "x.pkl  5.0 MB  0.5 MB/s\n"
