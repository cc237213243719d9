"""Each run's status by its run hash: finished, running with its newest number and job, failed, stale, not begun."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from onestep.config.identity import former_spec_of, spec_of
from onestep.files import Lock, sealed, write_json
from onestep.launch.journal import JobSeen
from onestep.plan import Plan
from onestep.plan.train import intention, run_config
from onestep.records import newest_watched
from onestep.run_record import RunRecord
from onestep.status import lines_of, statuses
from onestep.training.assignment import Inputs
from tiny import REPOSITORY, tiny_config, write_config

DONE = {"seconds": 900.0, "world_size": 2, "device": "A", "restarts": 3, "images_seen": 320}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the tiny config and the dataset of its runs."""
    write_config(tmp_path, tiny_config())
    data = tmp_path / "results/data/digits.zip"
    data.parent.mkdir(parents=True)
    data.write_bytes(b"images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def work_of(plan, run):
    """Return the work folder of a run without a teacher."""
    inputs = Inputs(run=plan.results.run_config(run), data=plan.results.data("digits"))
    spec = spec_of(json.loads(run_config(plan, run)), digests=inputs.digests(), code=None)
    return plan.results.root.parent / "state" / run / spec


def record(images, **more):
    time_now = datetime.now(UTC).isoformat()
    numbers = {"losses": {"classifier": 0.5, "r1": None}, "images_per_second": 20.0, "seconds": 36.0, "processes": 2}
    return json.dumps({"time": time_now, "images_seen": images, **numbers, **more}) + "\n"


def found(plan, place, job=None):
    read = statuses(
        plan, state=place / "state", job_of=lambda journal: job, values={"is": "inception_score", "fd": "frechet"}
    )
    return {each.run: each for each in read}


def test_a_running_run_has_its_rate_time_left_losses_number_and_job(place):
    plan = Plan.read("config.yaml")
    work = work_of(plan, "digits_edm")
    work.mkdir(parents=True)
    (work / "log.jsonl").write_text(record(32) + record(160) + '{"images_se')
    number = {"model": "digits_edm@160", "metric": "fd", "values": {"frechet": 22.25}, "spec": work.name}
    write_json(work / "watch/160.fd.json", sealed(number))
    write_json(place / "results/metrics/digits_edm@320/heun/0-31.fd.json", {"values": {"frechet": 1.0}})
    lock = Lock(work / "lock")
    assert found(plan, place)["digits_edm"].state == "stopped"
    assert lock.acquire()
    try:
        running = found(plan, place)["digits_edm"]
    finally:
        lock.release()
    assert (running.state, running.images_seen, running.images, running.rate) == ("running", 160, 320, 20.0)
    assert running.seconds_left == 8.0 and running.losses == {"classifier": 0.5} and running.hours == 0.02
    assert running.number == ("fd", 22.25, 160)
    job = JobSeen(job_id="12", state="PENDING", restarts=2, gpu_hours=1.25)
    queued = found(plan, place, job)["digits_edm"]
    assert (queued.state, queued.hours) == ("queued", 1.25)
    assert found(plan, place, replace(job, state="RUNNING"))["digits_edm"].state == "running"
    (line,) = lines_of([replace(running, job=job)])
    for fact in (
        "digits_edm",
        "running",
        "160 of 320 images",
        "50%",
        "20 images/s",
        "0:08 min left",
        "22.25",
        "job 12",
    ):
        assert fact in line


def test_a_first_training_is_no_training_again(place):
    assert intention(Plan.read("config.yaml"), "digits_d2o") == "trains digits_d2o to 320 images"


def test_what_another_config_trained_is_stale_and_its_numbers_are_not_shown(place):
    plan = Plan.read("config.yaml")
    summary = DONE | {"run": "digits_edm", "spec": "of_another_config"}
    write_json(place / "results/runs/digits_edm/summary.json", summary)
    write_json(place / "results/metrics/digits_edm@320/heun/0-31.fd.json", {"values": {"frechet": 1.0}})
    (place / "state/digits_edm/older").mkdir(parents=True)
    (place / "state/digits_edm/older/log.jsonl").write_text(record(64))
    edm = found(plan, place)["digits_edm"]
    assert (edm.state, edm.number, edm.images_seen) == ("not begun", None, 0)
    assert edm.stale == (("of_another_config", 320), ("older", 64))
    write_json(place / "results/runs/digits_edm/summary.json", summary | {"spec": work_of(plan, "digits_edm").name})
    edm = found(plan, place)["digits_edm"]
    assert (edm.state, edm.number, edm.hours) == ("finished", ("fd", 1.0, 320), 0.5)
    assert edm.stale == (("older", 64),)


def test_a_finished_run_of_fewer_images_continues_and_one_of_an_earlier_version_is_found_by_its_former_hash(place):
    plan = Plan.read("config.yaml")
    work, document = work_of(plan, "digits_edm"), json.loads(run_config(plan, "digits_edm"))
    (work / "state-000000000160").mkdir(parents=True)
    for folder in (work, place / "results/runs/digits_edm"):
        RunRecord(run="digits_edm", spec=work.name, config=document).write(folder)
    (work / "log.jsonl").write_text(record(160))
    shorter = DONE | {"run": "digits_edm", "spec": work.name, "images_seen": 160}
    write_json(work / "done.json", shorter)
    write_json(place / "results/runs/digits_edm/summary.json", shorter)
    grows = found(plan, place)["digits_edm"]
    assert (grows.state, grows.images_seen, grows.stale) == ("stopped", 160, ())
    assert all(fact in grows.intention for fact in ("continues", "from 160 to 320"))
    (work / "state-000000000160").rmdir()
    assert "from the start to 320" in found(plan, place)["digits_edm"].intention
    inputs = Inputs(run=plan.results.run_config("digits_edm"), data=plan.results.data("digits"))
    former = former_spec_of(document, digests=inputs.digests(), code=None)
    work.rename(work.with_name(former))
    (work.with_name(former) / "done.json").unlink()
    write_json(place / "results/runs/digits_edm/summary.json", shorter | {"spec": former, "images_seen": 320})
    for link in (False, True):
        if link:
            work.symlink_to(former, target_is_directory=True)
        edm = found(plan, place)["digits_edm"]
        assert (edm.state, edm.images_seen, edm.stale) == ("finished", 320, ())


def test_a_failure_has_its_reason_and_log(place):
    plan = Plan.read("config.yaml")
    work = work_of(plan, "digits_edm")
    write_json(work / "failed.json", {"time": "2026-01-01T00:00:00+00:00", "reason": "digits_edm: not finite"})
    log = place / "logs/train/digits_metric.log"
    log.parent.mkdir(parents=True)
    log.write_text("some lines\nonestep train: data: got none\nexit\n")
    failed = found(plan, place)
    for run, reason in (("digits_edm", "digits_edm: not finite"), ("digits_metric", "data: got none")):
        assert (failed[run].state, failed[run].reason) == ("failed", reason)
        assert str(failed[run].log) == f"logs/train/{run}.log"
    missing = failed["digits_d2o"]
    assert (missing.state, missing.missing) == ("waiting for inputs", "results/teachers/digits.safetensors")


def onestep(*arguments, folder):
    code = "import sys; from onestep.cli import main; code = main(); assert not sys.modules.get('torch'); exit(code)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_status_is_that_of_the_folder_of_its_config_without_torch_and_watch_ends_by_ctrl_c(place):
    plan = Plan.read("config.yaml")
    write_json(
        place / "results/runs/digits_edm/summary.json",
        DONE | {"run": "digits_edm", "spec": work_of(plan, "digits_edm").name},
    )
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    process = onestep("status", "--config", "../config.yaml", "--watch", "0.2", folder=elsewhere)
    lines = [process.stdout.readline() for _ in range(14)]
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert sum("digits_edm" in line and "finished" in line for line in lines) >= 2, (lines, complaint)


def test_of_a_folder_without_a_run_hash_the_newest_grid_and_number_are_found(tmp_path):
    assert newest_watched(tmp_path).grid is None
    for images in (5, 40):
        (tmp_path / "watch").mkdir(exist_ok=True)
        (tmp_path / f"watch/{images}.png").write_bytes(b"")
    write_json(tmp_path / "watch/5.fd.json", {"metric": "fd", "values": {"frechet": 2.0}})
    (tmp_path / "watch/40.fd.json").write_text("{")
    seen = newest_watched(tmp_path)
    assert seen.grid == (40, tmp_path / "watch/40.png") and seen.number == ("fd", "frechet", 2.0, 5)
