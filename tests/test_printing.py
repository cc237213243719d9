"""Printing is never fatal and is UTF-8; errors are lines that name their file; progress makes sense."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from onestep import files
from onestep.cli import main
from onestep.progress import Bar

SHOW = [sys.executable, "-m", "onestep", "show"]


@pytest.fixture
def table(tmp_path):
    """A table with more than ASCII, longer than a pipe."""
    (tmp_path / "t.md").write_text("| \u00d7 \u6570 \U0001f600 |\n" * 10_000, encoding="utf-8")
    return tmp_path / "t.json"


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
    ],
)
def test_output_is_utf_8_in_any_locale(table, locale):
    shown = subprocess.run([*SHOW, table], env={**os.environ, **locale}, capture_output=True)
    assert shown.returncode == 0 and not shown.stderr
    assert shown.stdout.decode().startswith("| \u00d7 \u6570 \U0001f600 |\n")


def test_a_reader_that_leaves_is_no_error(table):
    process = subprocess.Popen([*SHOW, table], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 0
    process.stderr.close()


def test_output_that_is_lost_on_a_full_disk_is_an_error(table):
    with open("/dev/full", "w") as full:
        shown = subprocess.run([*SHOW, table], stdout=full, stderr=subprocess.PIPE, text=True)
        unread = subprocess.run([*SHOW, "absent.json"], stdout=full, stderr=full)
    (line,) = shown.stderr.splitlines()
    assert shown.returncode == 1 and "standard output: No space left on device" in line
    assert unread.returncode == 1


def raising(monkeypatch, act):
    monkeypatch.setattr("onestep.report.verbs.compare", act)
    return main(["compare"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EINVAL, "Invalid argument"), "Invalid argument"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "utf-8"),
        (MemoryError(), "memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested"),
        (EOFError(), "EOFError"),
        (zipfile.BadZipFile("Bad magic number"), "Bad magic number"),
        (yaml.YAMLError("found a tab\nthere"), "found a tab there"),
    ],
)
def test_an_error_without_its_file_gets_it(monkeypatch, capsys, error, said):
    def read(path):
        raise error

    def compare():
        read(Path("data/the_file.bin"))

    assert raising(monkeypatch, compare) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onestep compare: data/the_file.bin: ") and said in line


def test_an_error_that_has_its_file_keeps_it(monkeypatch, capsys, tmp_path):
    def compare():
        other = Path("another")
        (tmp_path / "absent" / other).read_text()

    assert raising(monkeypatch, compare) == 1
    assert capsys.readouterr().err == f"onestep compare: {tmp_path}/absent/another: No such file or directory\n"


def test_the_traceback_of_an_unexpected_error_is_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def compare():
        raise RuntimeError("of torch\nin two lines")

    assert raising(monkeypatch, compare) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (kept,) = (tmp_path / "logs/errors").iterdir()
    assert "RuntimeError: of torch in two lines" in line and str(kept) in line
    assert "Traceback" in kept.read_text(encoding="utf-8") and "in compare" in kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_verb_that_is_ended_leaves_no_half_file(monkeypatch, tmp_path, number):
    def compare():
        with files.replacing(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(10)

    before = signal.getsignal(number)
    assert raising(monkeypatch, compare) == 128 + number
    assert not os.listdir(tmp_path) and signal.getsignal(number) == before


def bar_of(**numbers):
    stream = io.StringIO()
    bar = Bar(
        file=stream,
        mininterval=0,
        miniters=0,
        bar_format="{percentage:.0f}% {n_fmt}/{total_fmt} {remaining}",
        **numbers,
    )
    return bar, stream


@pytest.mark.parametrize(("total", "step"), [(31, 32), (1, 32), (100, 1000)])
def test_progress_ends_at_its_total(total, step):
    bar, stream = bar_of(total=total)
    bar.update(step)
    bar.close()
    assert stream.getvalue().strip().endswith(f"100% {total}/{total} 00:00")


def test_progress_has_no_negative_time_where_the_clock_is_set_back():
    bar, stream = bar_of(total=100, initial=50)
    bar.start_t += 3600
    bar.update(10)
    bar.refresh()
    assert "-" not in stream.getvalue() and "60% 60/100" in stream.getvalue()
