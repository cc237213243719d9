"""Preparing in parts and by several processes: killed and taken up, it gives the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onestep.cli import main
from onestep.data import _processes
from onestep.data._archive import prepare, write_archive
from onestep.data._processes import answers
from onestep.data.image_zip import ImageZip
from onestep.files import sha256_of_file

OPTIONS = {"name": "images", "resolution": 128, "transform": "scale", "labels": "folders"}


@pytest.fixture
def source(tmp_path):
    """A zip of 1,024 pictures of two classes that take a while to enlarge."""
    pixels = np.random.RandomState(0).randint(256, size=(8, 3, 16, 16)).astype(np.uint8)
    write_archive(tmp_path / "few.zip", ((picture, None) for picture in pixels))
    with zipfile.ZipFile(tmp_path / "few.zip") as few, zipfile.ZipFile(tmp_path / "many.zip", "w") as many:
        contents = [few.read(name) for name in few.namelist()[:8]]
        for index in range(1024):
            many.writestr(f"{'ab'[index % 2]}/{index:04d}.png", contents[index % 8])
    return tmp_path / "many.zip"


def _arguments(source: Path, target: Path, **changes) -> list[str]:
    dataset = json.dumps(OPTIONS | changes)
    return ["prepare", "--dataset", dataset, "--source", str(source), "--output", str(target), "--workers", "1"]


def _kill_after_the_first_part(source: Path, target: Path) -> int:
    """Start preparing, kill it as soon as it has made a part, and return how many it made."""
    command = [sys.executable, "-m", "onestep", *_arguments(source, target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    folder = target.with_name(f".{target.name}.parts")
    while not list(folder.glob("[0-9]*.npz")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not target.exists(), "it was done before it was killed"
    return len(list(folder.glob("[0-9]*.npz")))


def test_killed_and_started_again_it_goes_on_and_gives_the_same_bytes(tmp_path, source, caplog):
    caplog.set_level("INFO")
    made = _kill_after_the_first_part(source, tmp_path / "killed" / "d.zip")
    assert main(_arguments(source, tmp_path / "killed" / "d.zip")) == 0
    assert f"taken up: {256 * made:,} of 1,024 pictures" in caplog.text
    caplog.clear()
    assert main(_arguments(source, tmp_path / "whole" / "d.zip")) == 0
    assert "taken up" not in caplog.text
    for name in ("d.zip", "d.json", "d.png"):
        assert sha256_of_file(tmp_path / "killed" / name) == sha256_of_file(tmp_path / "whole" / name)
    assert len(list((tmp_path / "killed").iterdir())) == 3, "nothing else is left"


class _Interrupted(Exception):
    pass


class _Dataset:
    """Pictures of a level each; what is read is remembered, and reading the one at `stop` is the end."""

    resolution, channels, classes, class_names, unreadable_share = 8, 1, 0, (), 0.0

    def __init__(self, count: int, *, level: int = 0, stop: int | None = None) -> None:
        self.count, self.level, self.stop, self.read = count, level, stop, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.stop:
            raise _Interrupted
        self.read.append(index)
        return np.full((1, 8, 8), (index + self.level) % 256, np.uint8), 0


def test_only_what_is_missing_is_read_again(tmp_path):
    with pytest.raises(_Interrupted):
        prepare(_Dataset(600, stop=520), target=tmp_path / "d.zip", origin={"from": "here"})
    again = _Dataset(600)
    prepare(again, target=tmp_path / "d.zip", origin={"from": "here"})
    assert again.read == list(range(512, 600))


@pytest.mark.parametrize(("before", "now"), [({"from": "here"}, {"from": "there"}), (None, None)])
def test_work_of_another_or_an_unknown_origin_is_not_taken_up(tmp_path, before, now):
    with pytest.raises(_Interrupted):
        prepare(_Dataset(600, level=7, stop=520), target=tmp_path / "d.zip", origin=before)
    prepare(_Dataset(600), target=tmp_path / "d.zip", origin=now)
    assert ImageZip(source=tmp_path / "d.zip").read_all()[0][:, 0, 0, 0].tolist() == [n % 256 for n in range(600)]


def test_other_options_or_another_source_are_another_origin(tmp_path, source):
    from onestep.data._origin import origin_of

    known = origin_of(source, options=OPTIONS, code="c")
    assert known == origin_of(source, options=OPTIONS | {"unreadable_share": 0.5}, code="c")
    assert known != origin_of(source, options=OPTIONS | {"resolution": 64}, code="c")
    assert known != origin_of(source, options=OPTIONS, code="d")
    os.utime(source, (1, 1))
    assert known != origin_of(source, options=OPTIONS, code="c")


def _halve(shared: float, item: int) -> float:
    if item == 13:
        raise ValueError("thirteen is not halved")
    if item == 17:
        os._exit(9)
    return item / shared


@pytest.fixture
def eager(monkeypatch):
    """Start processes however little there is to do."""
    for name in ("_TRIED", "_WORTH_STARTING"):
        monkeypatch.setattr(_processes, name, 0.0)


def test_several_processes_answer_every_item_once(eager):
    assert dict(answers(_halve, 2.0, range(10), processes=2)) == {item: item / 2 for item in range(10)}


def test_an_error_in_a_process_is_raised_here(eager):
    with pytest.raises(ValueError, match="thirteen is not halved"):
        list(answers(_halve, 2.0, [1, 13, 2], processes=1)), list(answers(_halve, 2.0, [1, 2, 13], processes=2))


def test_a_process_that_dies_is_noticed(eager):
    with pytest.raises(ValueError, match=r"ended by itself \(exit code 9\).*fewer workers"):
        list(answers(_halve, 2.0, [1, 17, 2, 3], processes=2))


def test_little_work_starts_no_process(monkeypatch):
    monkeypatch.setattr(_processes, "_by_others", None)
    assert len(list(answers(_halve, 2.0, range(10), processes=64))) == 10


LEFT_ALONE = """
import os, sys, time
sys.path[:0] = {path!r}
from onestep.data import _processes

def pid(shared, item):
    open(os.path.join({folder!r}, str(os.getpid())), "w").close()
    time.sleep(0.05)

if __name__ == "__main__":
    _processes._TRIED = _processes._WORTH_STARTING = 0.0
    list(_processes.answers(pid, None, range(100000), processes=2))
"""


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    (tmp_path / "pids").mkdir()
    script = tmp_path / "script.py"
    script.write_text(LEFT_ALONE.format(path=[path for path in sys.path if path], folder=str(tmp_path / "pids")))
    process = subprocess.Popen([sys.executable, str(script)])
    while len(list((tmp_path / "pids").iterdir())) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    others = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in others):
        assert time.monotonic() < deadline, "they are still there"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether a process is there and is no zombie, which nobody here may have collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
