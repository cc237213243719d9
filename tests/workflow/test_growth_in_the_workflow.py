"""Through the real Snakefile: more images continue a run; neither a killed job nor an edit removes what is there."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from onestep.checkpoints.digests import checked
from onestep.files import read_json, sha256_of_file
from onestep.plan import Plan
from onestep.plan.train import intention
from tiny import selecting_config, write_config

RUN = "digits_d2o"
IMPORTED_ONCE = Path(__file__).with_name("imported_once.py")


def words(pipeline, monkeypatch) -> str | None:
    """Return what training the run would do."""
    monkeypatch.chdir(pipeline.work)
    return intention(Plan.read("config.yaml"), RUN)


def kill_its_training(pipeline, *, after):
    """Kill the process that trains the run once the file `after` exists."""
    deadline = time.monotonic() + 300
    while not after.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    (owner,) = (pipeline.work / "state" / RUN).glob("*/lock.owner")
    process = re.search(r"process (\d+)", owner.read_text())
    os.kill(int(process[1]), signal.SIGKILL)


@pytest.mark.long
def test_a_killed_growth_keeps_what_is_published_and_an_edit_keeps_the_run(finished, tmp_path, monkeypatch):
    pipeline = finished.copy(tmp_path)
    results = pipeline.work / "results/runs" / RUN
    target = str((results / "summary.json").relative_to(pipeline.work))
    within = (sys.executable, str(IMPORTED_ONCE))
    before = {path: sha256_of_file(path) for path in (results / "snapshots").iterdir()}
    inodes = {path: path.stat().st_ino for path in before}
    summary = (results / "summary.json").read_bytes()
    assert words(pipeline, monkeypatch) is None

    config = selecting_config()
    config["launch"]["state_seconds"] = 0.01
    config["runs"][RUN]["images"] = 12_800
    write_config(pipeline.work, config)
    assert words(pipeline, monkeypatch) == f"continues {RUN} from 320 to 12,800 images"
    new = results / "snapshots/480.safetensors"
    killer = threading.Thread(target=kill_its_training, args=(pipeline,), kwargs={"after": new})
    killer.start()
    failed = pipeline.snakemake(target, within=within)
    killer.join()
    assert failed.returncode != 0
    assert {path: sha256_of_file(path) for path in before} == before
    assert {path: path.stat().st_ino for path in before} == inodes
    assert (results / "summary.json").read_bytes() == summary
    checked(new)
    seen = max(int(path.name[-6:]) for path in (pipeline.work / "state" / RUN).glob("*/state-*"))

    images = config["runs"][RUN]["images"] = seen // 160 * 160 + 320
    write_config(pipeline.work, config)
    assert words(pipeline, monkeypatch) == f"continues {RUN} from {seen:,} to {images:,} images"
    done = pipeline.snakemake(target, "--rerun-incomplete", within=within)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(results / "summary.json")["images_seen"] == images
    assert {path: path.stat().st_ino for path in before} == inodes
    due, files = pipeline.due_with_files()
    assert not any(rule.startswith("train") or rule == "resolve" for rule in due)
    # Numbers of the earlier snapshots are those that are there.
    assert not [path for path in files if re.search(rf"{RUN}@(160|320)[-/]", path)]

    published = {path.name: sha256_of_file(path) for path in (results / "snapshots").iterdir()}
    config["runs"][RUN]["optimizers"]["generator"]["lr"] *= 2
    config["runs"][RUN]["images"] = 160
    write_config(pipeline.work, config)
    said = words(pipeline, monkeypatch)
    assert said is not None and "from the start" in said and "optimizers.generator.lr changed (" in said
    done = pipeline.snakemake(target, "--rerun-incomplete", within=within)
    assert done.returncode == 0, done.stdout + done.stderr
    (earlier,) = (results / "earlier").iterdir()
    assert f"earlier/{earlier.name}" in said
    assert {path.name: sha256_of_file(path) for path in (earlier / "snapshots").iterdir()} == published
    assert read_json(earlier / "summary.json")["images_seen"] == images
    assert read_json(results / "summary.json")["images_seen"] == 160
    assert words(pipeline, monkeypatch) is None
