"""Objective density_ratio with each ratio network: a state trains on bitwise, two processes train as one does."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import torch
import yaml
from test_discriminators import ALONE
from test_open_objectives import losses, train
from test_ranks import assert_two_train_as_one, task

from onestep import components
from onestep.bench.estimate import run_footprint
from onestep.checkpoints.snapshot import read_snapshot
from onestep.checkpoints.training_state import read_training_state
from onestep.config import parse_experiment
from onestep.config.run import run_of
from onestep.files import sha256_of_file
from onestep.published import newest_snapshot
from onestep.ratios import build_ratio
from onestep.training.run import assemble
from tiny import density_ratio_run, tiny_config

RATIOS: dict[str, dict[str, Any]] = {
    "teacher": {"name": "ratio_unet", "weights": "teacher"},
    "random": {"name": "ratio_unet", "weights": "random"},
}
# What has a state of its own: averages by noise level, a schedule that follows the signs, a lazy penalty.
_STATEFUL = {
    "divergence": "forward_kl",
    "noise": "diffusion_gan",
    "normalise": 0.5,
    "ratio_steps": 2,
    "r1": "exact",
    "r1_gamma": 0.1,
    "r1_every": 2,
}


def test_every_file_of_the_folder_is_tried():
    assert {block["name"] for block in RATIOS.values()} == set(components.choices("ratios"))


def _document(bench, *, ratio="teacher", **objective):
    document = yaml.safe_load(bench.document("digits_d2o", batch=8).read_text())
    return density_ratio_run(document, ratio=RATIOS[ratio], **objective)


def test_a_killed_run_ends_bitwise_as_one_that_was_not(bench, tmp_path):
    run = tmp_path / "run.yaml"
    changes = {"batch": 8, "images": 48, "snapshot_every": 48, "snapshots": [48], "dropout": 0.1}
    run.write_text(yaml.safe_dump(_document(bench, **_STATEFUL) | changes))
    straight = train(bench, run, "straight")
    train(bench, run, "killed", kill_at=5, expect=-signal.SIGKILL)
    state = read_training_state(tmp_path / "killed/state/digits_d2o/spec")
    for kind in ("player", "optimizer"):
        saved = {name.split(".")[1] for name in state.tensors if name.startswith(f"{kind}.")}
        assert saved == {"generator", "ratio"}
    averages = state.values["controls"]["ratio_averages"]["value"]
    assert len(averages) == 11 and averages[0] != 1.0
    resumed = train(bench, run, "killed")
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 6
    assert {"generator", "ratio", "r1"} == set().union(*losses(straight))
    ends = [read_training_state(tmp_path / each / "state/digits_d2o/spec") for each in ("straight", "killed")]
    assert ends[0].values["controls"] == ends[1].values["controls"] != state.values["controls"]
    assert ends[0].tensors.keys() == ends[1].tensors.keys()
    assert all(torch.equal(tensor, ends[1].tensors[name]) for name, tensor in ends[0].tensors.items())
    for name in ("48", "48-ratio"):
        one, other = ((each / f"snapshots/{name}.safetensors").read_bytes() for each in (straight, resumed))
        assert one == other


def test_two_processes_train_as_one_does(bench, tmp_path):
    made = task(bench, "digits_d2o", steps=4, batch_norm="held")
    made["run"] = density_ratio_run(made["run"], ratio=RATIOS["teacher"], **_STATEFUL)
    assert_two_train_as_one(bench, made, tmp_path)


def test_its_weights_at_the_start_are_the_teacher_s_or_random(bench):
    teacher = read_snapshot(bench.folder / "teacher.safetensors").state_dict
    for ratio in RATIOS:
        document = _document(bench, ratio=ratio, divergence="reverse_kl")
        network = assemble(run_of(document), files=bench.files(document), ranks=ALONE).networks["ratio"]
        own = {key: each for key, each in network.state_dict().items() if key.startswith("model.")}
        assert all(torch.equal(each, teacher[key]) for key, each in own.items()) == (ratio == "teacher")
        assert all(each.requires_grad for each in network.parameters())


def test_its_memory_is_estimated():
    config = tiny_config()
    config["runs"]["digits_d2o"] = density_ratio_run(
        config["runs"]["digits_d2o"], ratio=RATIOS["teacher"], divergence="jensen_shannon", r1="exact", r1_gamma=0.1
    )
    config["samplers"]["one_step"]["sigma"] = 2.5
    config["runs"].pop("digits_d2o_f")
    for table in config["tables"].values():
        table["rows"] = [row for row in table["rows"] if row.get("run") != "digits_d2o_f"]
    found = run_footprint(parse_experiment(config), "digits_d2o", on_cuda=False)
    assert set(found.phases) == {"generator", "ratio", "r1"}
    assert found.peak(16) > found.peak(8) > found.resident > 0


def test_its_weights_are_published_beside_the_last_snapshot(bench, tmp_path):
    run, last = tmp_path / "run.yaml", "snapshots/32-ratio.safetensors"
    changes = {"batch": 8, "images": 32, "snapshot_every": 16, "snapshots": [16, 32], "ema": {"half_life": 16.0}}
    run.write_text(yaml.safe_dump(_document(bench, divergence="jensen_shannon") | changes))
    published = train(bench, run, "first")
    names = {path.name for path in (published / "snapshots").iterdir()}
    assert names == {"16.safetensors", "32.safetensors", "32-ratio.safetensors"}
    # Those of the end: of the state, not an EMA. Its config builds it again without the teacher.
    state = read_training_state(tmp_path / "first/state/digits_d2o/spec")
    found = read_snapshot(published / last)
    network = build_ratio(found.config)
    network.load_state_dict(found.state_dict, strict=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state.tensors[f"player.ratio.{name}"])
    digest = sha256_of_file(published / last)
    for record in ("snapshots.json", "summary.json"):
        assert json.loads((published / record).read_text())["files"][last] == digest
    assert newest_snapshot(published).name == "32.safetensors"

    # One that is gone is published again, a damaged one is refused.
    (published / last).unlink()
    assert train(bench, run, "first") == published and sha256_of_file(published / last) == digest
    (published / last).unlink()
    (published / last).write_bytes((tmp_path / "first/state/digits_d2o/spec" / last).read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match="32-ratio"):
        read_snapshot(published / last)

    # A longer run has them at its own end, and keeps the former ones.
    run.write_text(yaml.safe_dump(yaml.safe_load(run.read_text()) | {"images": 48, "snapshots": [16, 32, 48]}))
    train(bench, run, "first")
    assert (published / "snapshots/48-ratio.safetensors").exists() and (published / last).exists()
