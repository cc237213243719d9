"""Files are whole or absent."""

import os
import socket
import subprocess
import sys

import pytest

from onestep import files


def test_a_failed_write_leaves_the_old_content_and_no_leftover(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


@pytest.mark.parametrize("target", ["numbers.json", "a [1]*.svg"])
def test_a_write_removes_what_killed_writers_of_the_file_left(tmp_path, target):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host, ended = socket.gethostname(), 2**22 + 1  # beyond the greatest process number
    old = tmp_path / f".{target}.elsewhere.7.tmp"
    gone = [tmp_path / f".{target}.{host}.{number}.tmp" for number in (ended, os.getpid())] + [old]
    stay = [
        tmp_path / f".{target}.{host}.{child.pid}.tmp",
        tmp_path / f".{target}.elsewhere.8.tmp",
        tmp_path / f".{target}.x.{host}.{ended}.tmp",
        tmp_path / f".other.{host}.{ended}.tmp",
        tmp_path / f".{target}.notes.tmp",
    ]
    for path in (*gone[1:], *stay):
        path.write_text("half")
    gone[0].mkdir()
    os.utime(old, (0, 0))
    linked = tmp_path / "published"
    linked.write_text("kept")
    gone[1].unlink()
    os.link(linked, gone[1])
    files.write_text(tmp_path / target, "whole")
    child.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {target, "published", *(path.name for path in stay)}
    assert (linked.read_text(), (tmp_path / target).read_text()) == ("kept", "whole")


def test_not_a_number_has_no_place_in_json(tmp_path):
    with pytest.raises(ValueError, match="Out of range float values"):
        files.write_json(tmp_path / "value.json", {"fd": float("nan")})
    assert not os.listdir(tmp_path)


def test_a_broken_json_file_is_named(tmp_path):
    path = tmp_path / "value.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"value\.json: not a JSON file .* delete it and run again"):
        files.read_json(path)


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert files.canonical_json({"b": 1, "a": [1.0, "x"]}) == files.canonical_json({"a": [1.0, "x"], "b": 1})
