"""A run whose images are raised continues from its state and ends bitwise as one long run; nothing published goes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from onestep.checkpoints.digests import checked
from onestep.config.identity import former_spec_of
from onestep.files import read_json, sha256_of_file
from onestep.training.assignment import Assignment, Inputs

EDM, D2O = "digits_edm", "digits_d2o"


def published(folder: Path) -> dict[str, str]:
    """Return the digests of the published snapshots."""
    return {path.name: sha256_of_file(path) for path in (folder / "snapshots").iterdir()}


def records(folder: Path) -> list:
    """Return what a run's log has of its losses."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [[each["images_seen"], each["losses"], each.get("observed")] for each in lines]


def wait_for(condition, *, seconds: float = 60.0):
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.01)


class Place:
    """The folders of one test's trainings."""

    def __init__(self, bench, folder: Path, run: str) -> None:
        self.bench, self.folder, self.run_name = bench, folder, run
        self.results = folder / "runs" / run

    def arguments(self, images: int, every: int = 64, **changes) -> list[str]:
        """Return the command that trains the run to `images`."""
        snapshots = [*range(every, images, every), images]
        document = self.bench.document(
            self.run_name, images=images, snapshot_every=every, snapshots=snapshots, dropout=0.1, **changes
        )
        return self.bench.arguments(document, state=self.folder / "state", output=self.folder / "runs")

    def train(self, images: int, *options: str, **changes) -> str:
        """Train to `images` and return what it said."""
        return self.bench.run([*self.arguments(images, **changes), *options])

    @property
    def work(self) -> Path:
        """The only work folder."""
        (folder,) = (self.folder / "state" / self.run_name).iterdir()
        return folder


@pytest.fixture
def place(bench, tmp_path):
    return lambda run, name: Place(bench, tmp_path / name, run)


@pytest.fixture(scope="module")
def long(bench, tmp_path_factory):
    """Whole trainings to 192 images of both objectives."""
    found = {run: Place(bench, tmp_path_factory.mktemp(run), run) for run in (EDM, D2O)}
    for each in found.values():
        each.train(192)
    return found


@pytest.mark.parametrize("run", [EDM, D2O])
def test_a_finished_run_grows_to_what_one_long_run_is(place, long, run):
    grown = place(run, "grown")
    said = grown.train(96)  # its end is between two steps of the long run's snapshots
    first = {path: path.stat().st_ino for path in (grown.results / "snapshots").iterdir()}
    assert len(list(grown.work.glob("state-*"))) == 1 and "MB of state" in said
    said = grown.train(192)
    assert "continues from 96 to 192" in said and "resumed at 96 images" in said
    assert all(path.stat().st_ino == inode for path, inode in first.items()), "what is published stays"
    assert published(grown.results) == published(long[run].results) | {"96.safetensors": first_digest(grown, 96)}
    assert records(grown.results) == records(long[run].results)
    assert read_json(grown.results / "summary.json")["images_seen"] == 192
    for path in (grown.results / "snapshots").iterdir():
        checked(path)


def first_digest(place: Place, images: int) -> str:
    return read_json(place.results / "snapshots.json")["files"][f"snapshots/{images}.safetensors"]


@pytest.mark.parametrize("run", [EDM, D2O])
def test_a_run_that_is_killed_halfway_grows_to_what_one_long_run_is(place, long, run):
    grown = place(run, "grown")
    half = [*grown.arguments(12_800, every=64), "--state-seconds", "0"]
    process = grown.bench.start(half)
    # Snapshots are there while it trains, whole and with their digests.
    wait_for(lambda: (grown.results / "snapshots/64.safetensors").exists() and any(grown.work.glob("state-*/m*")))
    early = checked(grown.results / "snapshots/64.safetensors").read_bytes()
    assert read_json(grown.results / "snapshots.json")["files"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    seen = max(int(path.name[-6:]) for path in grown.work.glob("state-*"))
    images = 192 if seen <= 192 else seen // 64 * 64 + 64
    grown.train(images)
    whole = long[run]
    if images != 192:
        whole = place(run, "long")
        whole.train(images)
    found, expected = published(grown.results), published(whole.results)
    assert {name: found[name] for name in expected} == expected and records(grown.results) == records(whole.results)
    assert (grown.results / "snapshots/64.safetensors").read_bytes() == early


@pytest.mark.long
def test_two_processes_grow_to_what_two_are_without_a_stop(place):
    grown, whole = place(EDM, "grown"), place(EDM, "whole")
    for each, lengths in ((grown, (64, 128)), (whole, (128,))):
        for images in lengths:
            each.bench.run([*each.arguments(images), "--processes", "2"])
    assert published(grown.results) == published(whole.results)
    assert records(grown.results) == records(whole.results)


def test_a_growth_that_is_killed_keeps_what_is_published_and_ends_the_same(place, long):
    grown = place(D2O, "grown")
    grown.train(64)
    before = published(grown.results)
    summary = (grown.results / "summary.json").read_bytes()
    process = grown.bench.start([*grown.arguments(192), "--state-seconds", "0"])
    wait_for(lambda: (grown.results / "snapshots/128.safetensors").exists())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode == -signal.SIGKILL:
        assert (grown.results / "summary.json").read_bytes() == summary
    assert published(grown.results).items() >= before.items()
    grown.train(192)
    assert published(grown.results) == published(long[D2O].results)
    assert records(grown.results) == records(long[D2O].results)


def test_another_science_leaves_the_published_run_beside_it_and_comes_back(place):
    run = place(EDM, "edited")
    rate = {"generator": {"name": "adam", "lr": 0.005, "betas": [0.9, 0.999], "eps": 1e-8}}
    run.train(64)
    first, log = published(run.results), (run.results / "log.jsonl").read_bytes()
    run.train(64, optimizers=rate)
    second = published(run.results)
    assert first != second
    (earlier,) = (run.results / "earlier").iterdir()
    assert published(earlier) == first and (earlier / "log.jsonl").read_bytes() == log
    assert read_json(earlier / "summary.json")["spec"] == earlier.name
    checked(earlier / "snapshots/64.safetensors")
    # Back to the old value, without its work folder: nothing is trained.
    shutil.rmtree(run.folder / "state" / EDM / earlier.name)
    run.train(64)
    assert published(run.results) == first and read_json(run.results / "summary.json")["spec"] == earlier.name
    (other,) = (run.results / "earlier").iterdir()
    assert published(other) == second
    assert (run.results / "log.jsonl").read_bytes() == log, "trained again"


def test_denser_snapshots_are_made_from_where_the_run_is(place):
    run = place(EDM, "denser")
    run.train(128)
    said = run.train(256, every=32)
    made = {int(name.split(".")[0]) for name in published(run.results)}
    assert made == {64, 128, 160, 192, 224, 256}
    (message,) = [line for line in said.splitlines() if "no snapshots at" in line]
    assert "32, 96" in message and str(run.work) in message
    # A length that it has passed without a snapshot is refused; one that has a snapshot needs no training.
    process = run.bench.start(run.arguments(100))
    said, _ = process.communicate()
    assert process.returncode == 1 and said.strip().count("\n") == 0 and "got 100" in said
    assert "resumed" not in run.train(192)


def test_without_its_state_it_trains_from_the_start_and_what_is_published_stays(place, long):
    run = place(EDM, "gone")
    run.train(64, "--discard-state")
    assert not list(run.work.glob("state-*"))
    before = published(run.results)
    (message,) = [line for line in run.train(192).splitlines() if "is gone" in line]
    assert "64 images" in message
    assert published(run.results) == published(long[EDM].results)
    assert published(run.results).items() >= before.items()


def test_the_length_of_a_cosine_schedule_is_science(place):
    run = place(EDM, "cosine")
    schedule = {"name": "cosine", "warmup": 0, "final": 0.0}
    rate = {"generator": {"name": "adam", "lr": 0.002, "betas": [0.9, 0.999], "eps": 1e-8, "schedule": schedule}}
    for images in (64, 128):
        run.train(images, optimizers=rate)
    assert len(list((run.folder / "state" / EDM).iterdir())) == 2
    assert len(list((run.results / "earlier").iterdir())) == 1


def test_a_run_of_an_earlier_version_is_taken_over(place, bench):
    """Its run hash was that of the whole run.yaml, and it had no record."""
    run = place(EDM, "former")
    run.train(64, "--discard-state")
    arguments = run.arguments(64)
    document = Path(arguments[arguments.index("--run") + 1])
    assignment = Assignment(
        inputs=Inputs(run=document, data=bench.folder / "digits.zip"),
        state=run.folder / "state",
        code_in_spec=False,
        state_seconds=1.0,
    )
    former = former_spec_of(assignment.document(), digests=assignment.inputs.digests(), code=None)
    folder = run.work.rename(run.work.with_name(former))
    (folder / "snapshots.json").unlink()
    done = read_json(folder / "done.json")
    for each in ("content_sha256", "files"):
        done.pop(each)
    (folder / "done.json").write_text(json.dumps({**done, "spec": former}))
    before = [*folder.glob("snapshots/*")]
    shutil.rmtree(run.folder / "runs")
    run.train(64)
    assert {path.name for path in folder.glob("snapshots/*")} == {path.name for path in before}
    assert read_json(run.results / "summary.json")["spec"] == former
    assert len(list((run.folder / "state" / EDM).iterdir())) == 2
    assert read_json(run.results / "snapshots.json")["spec"] == former
    run.train(128)
    assert {path.name for path in (run.results / "snapshots").iterdir()} == {"64.safetensors", "128.safetensors"}
