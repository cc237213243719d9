"""Further objectives: a restored state trains on bitwise, two processes train as one does, the memory is estimated."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import torch
import yaml
from test_discriminators import trained_steps
from test_open_objectives import losses, train
from test_ranks import assert_same_losses, task, train_in_ranks

from onestep.bench.estimate import run_footprint
from onestep.checkpoints.snapshot import read_snapshot
from onestep.checkpoints.training_state import read_training_state
from onestep.config import parse_experiment
from tiny import tiny_config

# Changes of a D2O run, blocks as a whole; None removes one.
RUNS: dict[str, dict[str, Any]] = {
    # A new stage on each third step: the state is saved in the middle of one.
    "easy_consistency": {
        "objective": {"name": "easy_consistency", "stage_images": 24, "c": 0.06},
        "discriminator": None,
        "preconditioning": "edm",
    },
    # With a weight of the penalties that changes at each step.
    "relativistic": {
        "objective": {"name": "relativistic", "gamma": 0.1, "gamma_final": 0.01, "schedule_images": 1_000}
    },
    # A step of the generator in each second step: states are saved before it and after it.
    "dmd2": {
        "objective": {"name": "dmd2", "updates": 2},
        "discriminator": {"name": "teacher_features"},
        "preconditioning": "edm",
    },
    "dmd2_teacher": {
        "objective": {"name": "dmd2", "features": "teacher", "updates": 2, "r1_gamma": 10.0},
        "discriminator": {"name": "teacher_features", "levels": [0]},
        "preconditioning": "edm",
    },
}
_GAN, _DMD2 = ("generator", "discriminator"), ("generator", "fake", "discriminator")
_TRAINED = {"easy_consistency": ("generator",), "relativistic": _GAN, "dmd2": _DMD2, "dmd2_teacher": _DMD2}


def run_document(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the block of a D2O run, or its document, as one of another objective."""
    adam = document["optimizers"]["generator"]
    changed = {**document, **RUNS[name], "optimizers": dict.fromkeys(_TRAINED[name], adam)}
    return {key: value for key, value in changed.items() if value is not None}


def _document(bench, name, **changes):
    return run_document(yaml.safe_load(bench.document("digits_d2o", batch=8).read_text()), name) | changes


@pytest.mark.parametrize("name", RUNS)
def test_a_restored_state_trains_on_bitwise(bench, tmp_path, name):
    document = _document(bench, name, dropout=0.1)
    straight = trained_steps(bench, document, tmp_path / "straight", first=0, last=5)
    for first, last in ((0, 2), (2, 3), (3, 5)):  # cut at an even and at an odd number of steps
        resumed = trained_steps(bench, document, tmp_path / "stopped", first=first, last=last)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())
    state = read_training_state(tmp_path / "stopped")
    for kind in ("player", "optimizer"):
        assert {key.split(".")[1] for key in state.tensors if key.startswith(f"{kind}.")} == set(_TRAINED[name])


@pytest.fixture(scope="module")
def ranks(bench, tmp_path_factory):
    """What one process and two make of each, with batch norms of heads held and without dropout."""
    folder, tasks = tmp_path_factory.mktemp("peers"), []
    for name in RUNS:
        tasks.append(task(bench, "digits_d2o", steps=4, batch_norm="held"))
        tasks[-1]["run"] = run_document(tasks[-1]["run"], name)
    both = [train_in_ranks(bench, tasks, folder / str(world), world=world) for world in (1, 2)]
    return dict(zip(RUNS, zip(*both, strict=True), strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_does(ranks, name):
    (one, alone), (other, together) = ranks[name]
    assert (one["ranks"], other["ranks"]) == (1, 2) and other["equal"]
    assert_same_losses(one, other)
    for key in alone:
        apart = (together[key] - alone[key]).norm()
        assert apart <= 0.02 * alone[key].norm() + 1e-6, key


@pytest.mark.parametrize("name", [pytest.param("relativistic", marks=pytest.mark.long), "dmd2_teacher"])
def test_its_memory_is_estimated(name):
    config = tiny_config()
    config["runs"]["digits_d2o"] = run_document(config["runs"]["digits_d2o"], name)
    config["runs"].pop("digits_d2o_f")
    for table in config["tables"].values():
        table["rows"] = [row for row in table["rows"] if row.get("run") != "digits_d2o_f"]
    found = run_footprint(parse_experiment(config), "digits_d2o", on_cuda=False)
    assert set(found.phases) == set(_TRAINED[name])
    assert found.peak(16) > found.peak(8) > found.resident > 0


@pytest.mark.long
def test_a_killed_run_ends_bitwise_as_one_that_was_not(bench, tmp_path):
    run = tmp_path / "run.yaml"
    changes = {"batch": 8, "images": 48, "snapshot_every": 48, "snapshots": [48], "dropout": 0.1}
    run.write_text(yaml.safe_dump(_document(bench, "easy_consistency", **changes)))
    straight = train(bench, run, "straight")
    train(bench, run, "killed", kill_at=5, expect=-signal.SIGKILL)
    resumed = train(bench, run, "killed")
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 6
    one, other = ((each / "snapshots/48.safetensors").read_bytes() for each in (straight, resumed))
    assert one == other
    stages = [json.loads(line)["observed"]["stage"] for line in (resumed / "log.jsonl").read_text().splitlines()]
    assert stages == [0, 0, 0, 1, 1, 1]
    assert read_snapshot(resumed / "snapshots/48.safetensors").note["sampler"]["name"] == "one_step"
