"""Denoisers in shards (FSDP2, gloo on CPUs): losses, states and snapshots of one process, on any number of ranks."""

from __future__ import annotations

import signal
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from test_open_objectives import losses, train
from test_peers import run_document
from test_ranks import assert_same_losses, task, train_in_ranks

from onestep.bench.estimate import fit_of, run_footprint
from onestep.checkpoints.snapshot import read_snapshot
from onestep.checkpoints.training_state import read_training_state
from onestep.config import parse_experiment
from onestep.config import run_document as run_document_of
from onestep.config.identity import spec_of
from onestep.training.footprint import Divisible, Footprint, PhaseMemory, footprint_of
from tiny import tiny_config

_EDM2 = {
    "name": "edm2",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "channels_per_head": 8,
}
# Runs by name: the tiny one, another objective of it, and changes of its document.
_RUNS = {
    "edm2": ("digits_edm", None, {"network": _EDM2, "micro_batch": 4}),
    "d2o_f": ("digits_d2o", None, {"freeze": ["conv", "proj"], "frozen_precision": "bfloat16"}),
}
_MORE = {
    "dmd2": ("digits_d2o", "dmd2", {"frozen_precision": "bfloat16"}),
    "edm": ("digits_edm", None, {"ema": {"half_life": 1_000.0, "others": [100]}}),
    "easy_consistency": ("digits_d2o", "easy_consistency", {}),
    "dmd2_teacher": ("digits_d2o", "dmd2_teacher", {"recompute": True}),
    "relativistic": ("digits_d2o", "relativistic", {"recompute": True}),
}


def _task(bench, run, objective, changes):
    made = task(bench, run, steps=4, batch_norm="held")
    if objective is not None:
        made["run"] = run_document(made["run"], objective)
    made["run"] |= changes
    for block in (made["run"], made["run"].get("network") or {}):
        if "dropout" in block:
            block["dropout"] = 0.0
    if (made["run"].get("discriminator") or {}).get("backbones"):
        made["run"]["discriminator"]["projection"] = "shared"
    for each in made["run"]["optimizers"].values():
        each["clip_norm"] = 0.5  # of all ranks
    return made


def _trained(bench, runs, folder):
    """Return what one process makes of each run, and two that hold it in shards."""
    tasks = [_task(bench, *run) for run in runs.values()]
    alone = train_in_ranks(bench, tasks, folder / "1", world=1)
    for each in tasks:
        each["run"]["shard"] = True
    together = train_in_ranks(bench, tasks, folder / "2", world=2)
    return dict(zip(runs, zip(alone, together, strict=True), strict=True))


def _assert_alike(found):
    for (one, alone), (other, together) in found.values():
        assert (one["ranks"], other["ranks"]) == (1, 2) and other["equal"]
        assert_same_losses(one, other)
        assert alone.keys() == together.keys()
        for key in alone:
            apart = (together[key] - alone[key]).norm()
            assert apart <= 0.02 * alone[key].norm() + 1e-6, key


def test_two_processes_with_shards_train_as_one_does(bench, tmp_path):
    _assert_alike(_trained(bench, _RUNS, tmp_path))


@pytest.mark.long
def test_two_processes_with_shards_train_further_runs_as_one_does(bench, tmp_path):
    _assert_alike(_trained(bench, _MORE, tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_with_shards_train_as_one_process_does(bench, tmp_path):
    _assert_alike(_trained(bench, {**_RUNS, **_MORE}, tmp_path))


@pytest.fixture
def run(bench, tmp_path):
    """The run.yaml of a tiny run in shards, with two averages."""
    changes = {"batch": 8, "images": 48, "snapshot_every": 24, "snapshots": [24, 48], "dropout": 0.0, "shard": True}
    document = yaml.safe_load(bench.document("digits_d2o").read_text())
    document = run_document(document, "easy_consistency") | changes
    document["ema"] |= {"others": [100]}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def _assert_same_files(one, other):
    """Compare snapshots and losses: the same tensors up to rounding, in files of one format."""
    for left, right in zip(losses(one), losses(other), strict=True):
        assert right["generator"] == pytest.approx(left["generator"], rel=1e-5)
    names = sorted(path.name for path in (one / "snapshots").glob("*.safetensors"))
    assert len(names) == 4
    for name in names:
        found, wanted = (read_snapshot(each / "snapshots" / name) for each in (other, one))
        assert (found.config, found.note) == (wanted.config, wanted.note)
        assert list(found.state_dict) == list(wanted.state_dict)
        for key, tensor in wanted.state_dict.items():
            assert found.state_dict[key].dtype == tensor.dtype
            assert torch.allclose(found.state_dict[key], tensor, rtol=1e-3, atol=1e-5), key


def _killed(bench, run, name, *, world):
    train(bench, run, name, kill_at=5, world=world, expect=-signal.SIGKILL)
    return read_training_state(run.parent / name / "state/digits_d2o/spec")


def test_two_processes_are_killed_and_one_goes_on(bench, run):
    alone = train(bench, run, "alone")
    state = _killed(bench, run, "two", world=2)
    assert state.images_seen in (24, 32) and state.values["world"] == 2
    shapes = {key: each.shape for key, each in read_snapshot(alone / "snapshots/48.safetensors").state_dict.items()}
    kept = {kind: {} for kind in ("player", "average", "average-ema100")}
    for key, tensor in state.tensors.items():
        kind, _, name = key.partition(".")
        if kind in kept:
            kept[kind][name.removeprefix("generator.")] = tensor.shape
    assert all(found and found.items() <= shapes.items() for found in kept.values()), kept.keys()
    _assert_same_files(alone, train(bench, run, "two"))


@pytest.mark.long
def test_one_process_is_killed_and_two_go_on_and_two_go_on_bitwise(bench, run):
    alone, straight = train(bench, run, "alone"), train(bench, run, "straight", world=2)
    _assert_same_files(alone, straight)
    assert _killed(bench, run, "one", world=1).values["world"] == 1
    _assert_same_files(alone, train(bench, run, "one", world=2))
    _killed(bench, run, "two", world=2)
    again = train(bench, run, "two", world=2)
    assert losses(again) == losses(straight)
    for path in (straight / "snapshots").glob("*.safetensors"):
        assert (again / "snapshots" / path.name).read_bytes() == path.read_bytes()


def test_shards_are_no_part_of_the_run_hash_and_of_default_documents(run):
    document = yaml.safe_load(run.read_text())
    plain = {key: value for key, value in document.items() if key != "shard"}
    assert spec_of(document, digests={}, code=None) == spec_of(plain, digests={}, code=None)
    assert "shard" not in run_document_of(parse_experiment(tiny_config()), "digits_d2o")


def test_the_estimate_divides_what_is_in_shards():
    phase = PhaseMemory(saved=1, saved_fixed=0, per_image=2, fixed=0, update=80, gradients=40, is_divisible=True)
    heads = PhaseMemory(saved=1, saved_fixed=0, per_image=2, fixed=0, update=20, gradients=10)
    own = Divisible(weights=100, averages=40, moments=80, gradients=40, copies=10, gathered=30)
    found = Footprint(
        weights=150,
        averages=40,
        moments=100,
        gradients=50,
        phases={"generator": phase, "discriminator": heads},
        flops={"generator": 1.0, "discriminator": 1.0},
        every={"generator": 1, "discriminator": 1},
        divisible=own,
    )
    part = found.divided(4)
    assert (part.weights, part.averages, part.moments, part.gradients) == (150 - 10 - 75 + 30, 10, 40, 20)
    assert (part.phases["generator"].update, part.phases["discriminator"].update) == (20, 20)
    assert found.divided(1) == found and part.divided(2) == part
    assert footprint_of(asdict(found)) == found
    fit = replace(fit_of(found, share=8, micro_batch=None, memory=1), parts=4)
    assert fit.fix("x") == "runs.x.shard: true and micro_batch: 4"


def test_a_run_in_shards_needs_less():
    experiment = parse_experiment(tiny_config())
    found = run_footprint(experiment, "digits_edm", on_cuda=False)
    assert 0.99 * found.weights < found.divisible.weights < found.weights  # all but a few buffers
    assert found.divisible.moments == found.moments and found.divisible.averages == found.averages
    assert found.divided(8).resident < 0.6 * found.resident
