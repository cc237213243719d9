"""Preparing in parts and by several processes: killed and taken up, it gives the same bytes."""

from __future__ import annotations

import importlib
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

from image_archives import write_archive
from onestep.cli import main
from onestep.data._archive import origin_of, prepare
from onestep.data._processes import in_processes
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
    assert f"resumed: {256 * made:,} of 1,024" in caplog.text
    caplog.clear()
    assert main(_arguments(source, tmp_path / "whole" / "d.zip")) == 0
    assert "resumed" not in caplog.text
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
    known = origin_of(_Dataset(1), source, options=OPTIONS, code="c")
    assert known == origin_of(_Dataset(1), source, options=OPTIONS | {"unreadable_share": 0.5}, code="c")
    assert known != origin_of(_Dataset(1), source, options=OPTIONS | {"resolution": 64}, code="c")
    assert known != origin_of(_Dataset(1), source, options=OPTIONS, code="d")
    os.utime(source, (1, 1))
    assert known != origin_of(_Dataset(1), source, options=OPTIONS, code="c")


def _halve(shared: float, item: int) -> float:
    if item == 13:
        raise ValueError("thirteen is not halved")
    if item == 17:
        os._exit(9)
    return item / shared


ITEMS = [float(item) for item in range(100, 132)]


def test_several_processes_return_every_item_once():
    assert dict(in_processes(_halve, 2.0, ITEMS, workers=2)) == {item: item / 2 for item in ITEMS}


def test_an_error_in_a_process_is_raised_here():
    for items, workers in (([1, 13, 2], 1), ([*ITEMS, 13], 2)):
        with pytest.raises(ValueError, match="thirteen is not halved"):
            list(in_processes(_halve, 2.0, items, workers=workers))


def test_a_process_that_dies_is_one_line():
    with pytest.raises(ValueError, match=r"one of 2 worker processes died.*fewer workers") as caught:
        list(in_processes(_halve, 2.0, [17, *ITEMS], workers=2))
    assert "\n" not in str(caught.value)


def _pid(shared: None, item: int) -> int:
    return os.getpid()


def test_little_work_starts_no_process():
    assert {pid for _, pid in in_processes(_pid, None, range(10), workers=64)} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in in_processes(_pid, None, range(16), workers=64)}


LONG_WORK = """
import os, sys, time
sys.path[:0] = {path!r}
from onestep.data._processes import in_processes

def pid(shared, item):
    open(os.path.join({folder!r}, str(os.getpid())), "w").close()
    time.sleep(0.05)

if __name__ == "__main__":
    try:
        list(in_processes(pid, None, range(100000), workers=2))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_when_their_parent_is_killed_or_interrupted(tmp_path, signum):
    (tmp_path / "pids").mkdir()
    script = tmp_path / "script.py"
    script.write_text(LONG_WORK.format(path=[path for path in sys.path if path], folder=str(tmp_path / "pids")))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, start_new_session=True)
    while len(list((tmp_path / "pids").iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    if signum == signal.SIGINT:  # Ctrl-C reaches all processes of a terminal
        os.killpg(process.pid, signum)
        assert process.communicate(timeout=60)[1] == b"" and process.returncode == 130
    else:
        process.send_signal(signum)
        process.communicate()
    others = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in others):
        assert time.monotonic() < deadline, "they still run"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


OUTSIDE = """
import torch

class Stripes:
    channels, classes, class_names, unreadable_share = 1, 2, ("across", "down"), 0.0

    def __init__(self, *, source, resolution, width=1):
        self.resolution, self.width = resolution, width
        self.count = int(source.read_text())

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        stripes = ((torch.arange(self.resolution) + index) // self.width % 2 * 255).to(torch.uint8)
        pixels = stripes.expand(self.resolution, self.resolution)
        return (pixels if index % 2 else pixels.T)[None], index % 2
"""


def test_a_dataset_class_from_outside_the_package_is_prepared(tmp_path, monkeypatch):
    (tmp_path / "my_stripes.py").write_text(OUTSIDE)
    (tmp_path / "count.txt").write_text("40")
    monkeypatch.syspath_prepend(tmp_path)
    stripes = importlib.import_module("my_stripes").Stripes
    cards = [
        prepare(
            stripes(source=tmp_path / "count.txt", resolution=8, width=2),
            target=tmp_path / f"{workers}.zip",
            workers=workers,
            shard=2,
        )
        for workers in (1, 2)
    ]
    assert cards[0] == cards[1] and cards[0]["images_per_class"] == [20, 20]
    assert cards[0]["class_names"] == ["across", "down"]
    pixels, labels = ImageZip(source=tmp_path / "2.zip").read_all()
    assert pixels.shape == (40, 1, 8, 8) and labels.tolist() == [0, 1] * 20
    assert pixels[1, 0, 0].tolist() == [0, 255, 255, 0, 0, 255, 255, 0]


def test_an_archive_that_is_damaged_on_disk_is_refused(tmp_path, monkeypatch):
    target, replace = tmp_path / "d.zip", os.replace

    def damaging(source, path):
        replace(source, path)
        if Path(path) == target:
            content = bytearray(target.read_bytes())
            content[5000] ^= 1
            target.write_bytes(content)

    monkeypatch.setattr(os, "replace", damaging)
    with pytest.raises(ValueError, match=r"d.zip: got damage in 00000/img000000\d\d.png .* prepare it again"):
        prepare(_Dataset(300), target=target)
    assert not target.with_suffix(".json").exists()


def test_a_dataset_is_prepared_without_torch(tmp_path, source):
    code = "import sys; sys.modules['torch'] = None; from onestep.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *_arguments(source, tmp_path / "d.zip")]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert len(ImageZip(source=tmp_path / "d.zip")) == 1024
