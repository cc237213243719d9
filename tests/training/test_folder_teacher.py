"""D2O and D2O-F from a folder of diffusers: converted, trained, resumed, sampled; the law ddpm all the way."""

from __future__ import annotations

import signal

import pytest
import torch
import yaml
from test_open_objectives import losses, train

from onestep.archive import read_arrays
from onestep.checkpoints.snapshot import read_snapshot
from onestep.cli import main
from onestep.networks import frozen_parameters, load_denoiser
from unet2d_folders import write_folder


@pytest.fixture
def teacher(bench, tmp_path):
    """The teacher's file of the tiny runs, converted from a folder, in a folder of its own."""
    write_folder(tmp_path / "unet")
    target = tmp_path / "bench" / "teacher.safetensors"
    target.parent.mkdir()
    for name in ("digits.zip", "backbone.safetensors"):
        (target.parent / name).symlink_to(bench.folder / name)
    assert main(["convert", "--source", str(tmp_path / "unet"), "--output", str(target)]) == 0
    return type(bench)(target.parent)


def _run(bench, tmp_path, *, freeze=(), **changes):
    document = yaml.safe_load(bench.document("digits_d2o", batch=8).read_text())
    document["objective"] |= {"sigma": 2.5, "r1_every": 2}
    document |= {"preconditioning": "ddpm", "freeze": list(freeze), "images": 32, "snapshot_every": 32}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document | {"snapshots": [32]} | changes))
    return path


def test_a_killed_d2o_f_ends_bitwise_and_is_sampled_as_it_was_trained(bench, teacher, tmp_path):
    run = _run(bench, tmp_path, freeze=["conv", "proj"])
    straight = train(teacher, run, "straight")
    train(teacher, run, "killed", kill_at=3, expect=-signal.SIGKILL)
    resumed = train(teacher, run, "killed")
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 4
    one, other = (each / "snapshots" / "32.safetensors" for each in (straight, resumed))
    assert one.read_bytes() == other.read_bytes()

    found, before = read_snapshot(one), load_denoiser(teacher.folder / "teacher.safetensors")
    assert found.config["preconditioning"] == "ddpm" and found.note["sampler"] == {"name": "one_step", "sigma": 2.5}
    frozen = set(frozen_parameters(before, ["conv", "proj"]))
    for name, tensor in before.state_dict().items():
        assert torch.equal(found.state_dict[name], tensor) == (name in frozen), name
    images = tmp_path / "images.npz"
    assert main(["sample", str(one), str(images), "--seeds", "0-3"]) == 0
    assert read_arrays(images).about["sampler"] == {"name": "one_step", "sigma": 2.5}


def test_the_law_of_edm_is_refused_as_training_begins(bench, teacher, tmp_path):
    run = _run(bench, tmp_path, preconditioning="d2o")
    arguments = teacher.arguments(run, state=tmp_path / "state", output=tmp_path / "runs")
    process = teacher.start(arguments)
    said, _ = process.communicate()
    assert process.returncode != 0 and "preconditioning: got 'd2o', expected ddpm" in said
