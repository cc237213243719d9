"""D2O and D2O-F from a DiT and a SiT: killed and resumed, in two processes, on the teacher's tokens; memory."""

from __future__ import annotations

import signal

import pytest
import torch
import yaml
from test_discriminators import trained_steps
from test_open_objectives import losses, train
from test_ranks import assert_same_losses, task, train_in_ranks

from dit_files import SMALL, small_dit
from onestep.archive import read_arrays
from onestep.bench.estimate import run_footprint
from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.cli import main
from onestep.config import parse_experiment
from onestep.networks import frozen_parameters, load_denoiser
from tiny import tiny_config

_OPTIONS = {"patch_size": 2, "depth": 3}
_OBJECTIVE = {"sigma": 2.5, "r1_every": 2, "r1_gamma": 0.1}
# Of each law: frozen levels and discriminator, the run's own or heads on tokens.
RUNS = {"ddpm": ([], None), "flow": (["F2"], {"name": "teacher_features", "levels": [0, 2]})}


@pytest.fixture
def teachers(bench, tmp_path):
    """A function: the tiny runs with a teacher of a law, in a folder of its own."""
    return lambda law: _with_teacher(bench, tmp_path / f"bench {law}", law=law)


def _with_teacher(bench, folder, *, law):
    folder.mkdir()
    for name in ("digits.zip", "backbone.safetensors", "config.yaml"):
        (folder / name).symlink_to(bench.folder / name)
    config = {**SMALL, **_OPTIONS, "preconditioning": law}
    write_snapshot(folder / "teacher.safetensors", small_dit(law=law, **_OPTIONS).state_dict(), config)
    return type(bench)(folder)


def _changes(law):
    freeze, discriminator = RUNS[law]
    own = {} if discriminator is None else {"discriminator": discriminator}
    return {"preconditioning": law, "freeze": freeze, **own}


def _document(bench, law):
    document = yaml.safe_load(bench.document("digits_d2o", batch=8).read_text()) | _changes(law)
    document["objective"] |= _OBJECTIVE
    return document


@pytest.mark.parametrize("law", RUNS)
def test_a_restored_state_trains_on_bitwise(bench, teachers, tmp_path, law):
    teacher, document = teachers(law), _document(bench, law)
    straight = trained_steps(teacher, document, tmp_path / "straight", first=0, last=4)
    trained_steps(teacher, document, tmp_path / "stopped", first=0, last=2)
    resumed = trained_steps(teacher, document, tmp_path / "stopped", first=2, last=4)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


@pytest.mark.parametrize("law", [pytest.param("ddpm", marks=pytest.mark.long), "flow"])
def test_a_killed_run_ends_bitwise_and_is_sampled_as_it_was_trained(bench, teachers, tmp_path, law):
    teacher, document = teachers(law), _document(bench, law)
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(document | {"images": 32, "snapshot_every": 32, "snapshots": [32]}))
    straight = train(teacher, run, "straight")
    train(teacher, run, "killed", kill_at=3, expect=-signal.SIGKILL)
    resumed = train(teacher, run, "killed")
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 4
    one, other = (each / "snapshots" / "32.safetensors" for each in (straight, resumed))
    assert one.read_bytes() == other.read_bytes()

    found, before = read_snapshot(one), load_denoiser(teacher.folder / "teacher.safetensors")
    assert found.config["preconditioning"] == law and found.note["sampler"] == {"name": "one_step", "sigma": 2.5}
    held = {"model.pos_embed", *frozen_parameters(before, RUNS[law][0])}
    for name, tensor in before.state_dict().items():
        assert torch.equal(found.state_dict[name], tensor) == (name in held), name
    images = tmp_path / "images.npz"
    assert main(["sample", str(one), str(images), "--seeds", "0-3"]) == 0
    assert read_arrays(images).about["sampler"] == {"name": "one_step", "sigma": 2.5}


@pytest.mark.parametrize("law", [pytest.param("ddpm", marks=pytest.mark.long), "flow"])
def test_two_processes_train_as_one_does(teachers, tmp_path, law):
    teacher = teachers(law)
    each = task(teacher, "digits_d2o", steps=3, batch_norm="held", objective=_OBJECTIVE | {"rows_per_rank": 1.0})
    each["run"] |= _changes(law)
    ((one, alone),), ((other, together),) = (
        train_in_ranks(teacher, [each], tmp_path / str(world), world=world) for world in (1, 2)
    )
    assert (one["ranks"], other["ranks"]) == (1, 2) and other["equal"]
    assert_same_losses(one, other)
    for key in alone:
        assert (together[key] - alone[key]).norm() <= 0.02 * alone[key].norm() + 1e-6, key


def test_its_memory_is_estimated():
    config = tiny_config()
    network = {key: value for key, value in SMALL.items() if key[:4] not in ("img_", "labe")}
    config["runs"]["digits_edm"]["network"] = {**network, **_OPTIONS, "preconditioning": "flow"}
    config["runs"]["digits_d2o_f"] |= {"freeze": ["F2"], "discriminator": {"name": "teacher_features"}}
    for run in ("digits_d2o", "digits_d2o_f"):
        config["runs"][run].pop("preconditioning", None)
    found = run_footprint(parse_experiment(config), "digits_d2o_f", on_cuda=False)
    assert set(found.phases) == {"generator", "discriminator", "r1"}
    assert found.peak(16) > found.peak(8) > found.resident > 0
