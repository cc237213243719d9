"""A killed run ends bitwise as an undisturbed one; ranks agree; one process equals two."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from onestep.config.identity import spec_of


def snapshot(folder, run, name):
    return (folder / run / "snapshots" / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("run", "objective", "counts"),
    [
        pytest.param("digits_edm", {}, (960, 1600), marks=pytest.mark.long),
        ("digits_d2o", {}, (800, 1280)),
        pytest.param("digits_d2o", {"steps": 2}, (480, 800), marks=pytest.mark.long),
    ],
)
def test_killed_three_times_at_random_moments_it_ends_bitwise_equal(bench, tmp_path, run, objective, counts):
    averages = {"half_life": 5_000, "ramp_up": 0.05, "others": [20]}
    first, images = counts
    document = bench.document(run, images=images, snapshots=[first, images], dropout=0.1, ema=averages)
    changed = yaml.safe_load(document.read_text())
    changed["objective"] |= objective
    document.write_text(yaml.safe_dump(changed))
    straight = bench.arguments(document, state=tmp_path / "a", output=tmp_path / "straight")
    bench.run(straight)

    killed = [*bench.arguments(document, state=tmp_path / "b", output=tmp_path / "killed"), "--state-seconds", "0"]
    moments = random.Random(run)
    deaths, resumed_at = 0, []
    while deaths < 3:
        states = len(list((tmp_path / "b").rglob("log.jsonl")))
        process = bench.start(killed)
        _wait_for_progress(tmp_path / "b", had=states)
        time.sleep(moments.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        said, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"ended before it was killed: {said}"
        deaths += 1
        resumed_at += [int(path.name.split("-")[1]) for path in (tmp_path / "b").rglob("state-*")]
    said = bench.run(killed)
    assert "resumed at" in said
    assert max(resumed_at) > 0
    for name in (f"{first}", f"{first}-ema20", f"{images}", f"{images}-ema20"):
        assert snapshot(tmp_path / "killed", run, name) == snapshot(tmp_path / "straight", run, name)
    assert snapshot(tmp_path / "killed", run, first) != snapshot(tmp_path / "killed", run, f"{first}-ema20")
    summary = json.loads((tmp_path / "killed" / run / "summary.json").read_text())
    assert summary["restarts"] > 0
    records = [json.loads(line) for line in (tmp_path / "killed" / run / "log.jsonl").read_text().splitlines()]
    seen = [record["images_seen"] for record in records]
    assert seen == sorted(set(seen)) and seen[-1] == images
    undisturbed = [json.loads(line) for line in (tmp_path / "straight" / run / "log.jsonl").read_text().splitlines()]
    assert [r["losses"] for r in records] == [r["losses"] for r in undisturbed]


def _wait_for_progress(state, *, had):
    """Wait until the run has written a state."""
    deadline = time.monotonic() + 60
    while not list(state.rglob("state-*/manifest.json")):
        assert time.monotonic() < deadline, "no state within a minute"
        time.sleep(0.01)


def test_a_finished_run_is_published_again_without_training(bench, tmp_path):
    document = bench.document("digits_edm", images=64, snapshots=[64])
    arguments = bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs")
    bench.run(arguments)
    before = snapshot(tmp_path / "runs", "digits_edm", 64)
    log = (tmp_path / "runs/digits_edm/log.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "runs")
    bench.run(arguments)
    assert snapshot(tmp_path / "runs", "digits_edm", 64) == before
    assert (tmp_path / "runs/digits_edm/log.jsonl").read_bytes() == log
    assert len(list((tmp_path / "state").rglob("state-*"))) == 1, "a finished run keeps the state of its end alone"


def test_other_averages_leave_the_main_one_as_it_is(bench, tmp_path):
    for others in ([], [20, 5_000_000]):
        averages = {"half_life": 100, "ramp_up": 0.0, "others": others}
        document = bench.document("digits_edm", images=96, snapshots=[64, 96], ema=averages)
        bench.run(bench.arguments(document, state=tmp_path / "state", output=tmp_path / str(len(others))))
    alone, together = (sorted(path.name for path in (tmp_path / each).rglob("*.safetensors")) for each in "02")
    assert alone == ["64.safetensors", "96.safetensors"]
    assert together == sorted(
        f"{images}{average}.safetensors" for images in (64, 96) for average in ("", "-ema20", "-ema5000000")
    )
    assert snapshot(tmp_path / "0", "digits_edm", 96) == snapshot(tmp_path / "2", "digits_edm", 96)


def test_another_spec_gets_its_own_folder(bench, tmp_path):
    for seed in (0, 1):
        document = bench.document("digits_edm", images=64, snapshots=[64], seed=seed)
        bench.run(bench.arguments(document, state=tmp_path / "state", output=tmp_path / str(seed)))
    assert len(list((tmp_path / "state/digits_edm").iterdir())) == 2
    assert snapshot(tmp_path / "0", "digits_edm", 64) != snapshot(tmp_path / "1", "digits_edm", 64)


def test_a_second_trainer_of_the_same_run_is_refused(bench, tmp_path):
    document = bench.document("digits_edm", images=320_000, snapshots=[320_000])
    arguments = bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs")
    first = bench.start([*arguments, "--state-seconds", "0"])
    try:
        _wait_for_progress(tmp_path / "state", had=0)
        second = bench.start(arguments)
        said, _ = second.communicate()
    finally:
        first.kill()
        first.communicate()
    assert second.returncode == 1
    assert f"process {first.pid}" in said and "is training this run" in said and len(said.strip().splitlines()) == 1


def logged_losses(folder):
    """Return the losses that a tiny edm run has logged, one a step."""
    log = (folder / "runs/digits_edm/log.jsonl").read_text().splitlines()
    return [json.loads(line)["losses"]["generator"] for line in log]


def assert_same_losses(one, other):
    assert len(one) == 20
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-5, atol=1e-5)


def test_one_process_equals_two_on_the_same_batch(bench, tmp_path):
    document = bench.document("digits_edm", images=640, snapshots=[640])
    losses = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        arguments = bench.arguments(document, state=folder / "state", output=folder / "runs")
        bench.run([*arguments, "--processes", str(processes)])
        losses.append(logged_losses(folder))
    assert_same_losses(*losses)


def test_a_batch_in_passes_trains_as_the_whole_batch(bench, tmp_path):
    document = bench.document("digits_edm", images=640, snapshots=[640])
    losses = []
    for passes, options in ((1, []), (5, ["--micro-batch", "7"])):
        folder = tmp_path / str(passes)
        bench.run([*bench.arguments(document, state=folder / "state", output=folder / "runs"), *options])
        assert json.loads((folder / "runs/digits_edm/summary.json").read_text())["passes"] == passes
        losses.append(logged_losses(folder))
    assert_same_losses(*losses)


def test_a_micro_batch_of_the_run_is_its_own_and_may_not_be_contradicted(bench, tmp_path):
    document = bench.document("digits_edm", images=64, snapshots=[64], micro_batch=7)
    arguments = bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs")
    process = bench.start([*arguments, "--micro-batch", "16"])
    said, _ = process.communicate()
    assert process.returncode == 1 and "--micro-batch: got 16, expected 7" in said
    bench.run(arguments)
    assert json.loads((tmp_path / "runs/digits_edm/summary.json").read_text())["passes"] == 5
    plain = bench.document("digits_edm", images=64, snapshots=[64])
    specs = {spec_of(yaml.safe_load(each.read_text()), digests={}, code=None) for each in (document, plain)}
    assert len(specs) == 2, "a micro-batch may change numbers, so it is part of the run hash"


def test_d2o_trains_in_passes_and_without_second_derivatives_of_features(bench, tmp_path):
    document = bench.document("digits_d2o", images=160, snapshots=[160])
    run = yaml.safe_load(document.read_text())
    run["objective"] |= {"r1_gradient": "forward_mode"}
    document.write_text(yaml.safe_dump(run))
    arguments = bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs")
    bench.run([*arguments, "--rows-per-pass", "16"])
    assert json.loads((tmp_path / "runs/digits_d2o/summary.json").read_text())["passes"] == 2
    records = [json.loads(line) for line in (tmp_path / "runs/digits_d2o/log.jsonl").read_text().splitlines()]
    assert {"generator", "discriminator", "r1"} == set().union(*(record["losses"] for record in records))
    assert all(value is not None for record in records for value in record["losses"].values())


def test_passes_of_no_rows_are_refused(bench, tmp_path):
    document = bench.document("digits_edm", images=64, snapshots=[64])
    arguments = bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs")
    process = bench.start([*arguments, "--rows-per-pass", "0"])
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "micro-batch: got 0" in said and len(said.strip().splitlines()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_resumed_run_ends_where_an_undisturbed_one_does(bench, tmp_path):
    """To rounding: on a GPU sums may be taken in another order each time. The longer run continues the shorter one."""
    options = {"compile": {"channels_last": True, "fused_optimizer": True}, "dropout": 0.1, "batch": 32}
    whole = bench.document("digits_d2o", images=384, snapshots=[192, 384], **options)
    half = bench.document("digits_d2o", images=192, snapshots=[192], **options)
    bench.run(bench.arguments(whole, state=tmp_path / "a", output=tmp_path / "straight"))
    bench.run(bench.arguments(half, state=tmp_path / "b", output=tmp_path / "resumed"))
    said = bench.run(bench.arguments(whole, state=tmp_path / "b", output=tmp_path / "resumed"))
    assert "resumed at 192" in said
    start, one, other = (
        load_file(tmp_path / folder / "digits_d2o" / "snapshots" / f"{images}.safetensors")
        for folder, images in (("straight", 192), ("straight", 384), ("resumed", 384))
    )
    moved, apart = (torch.cat([(one[name] - each[name]).flatten() for name in one]) for each in (start, other))
    assert moved.norm() > 0 and apart.norm() < 0.05 * moved.norm()
