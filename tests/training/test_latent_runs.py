"""Runs on latents: draws of the posterior, a discriminator of decoded pixels, kills, ranks, decoded samples."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml
from test_ahead import ALONE
from test_discriminators import trained_steps
from test_open_objectives import losses, train
from test_ranks import assert_same_losses, task, train_in_ranks

from autoencoder_folders import CODEC, latent_config, small_folder
from onestep.archive import read_arrays
from onestep.autoencoders.kl import KL
from onestep.bench.estimate import run_footprint
from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.cli import main
from onestep.config import parse_experiment
from onestep.config.run import run_of
from onestep.data._batches import opened
from onestep.data.image_zip import ImageZip
from onestep.distributed import Ranks
from onestep.objectives.d2o import D2O
from onestep.training.ahead import next_data
from onestep.training.run import assemble
from tiny import tiny_config, write_config


@pytest.fixture(scope="session")
def latents(bench, tmp_path_factory):
    """A bench whose dataset is the latents of the digits, with their autoencoder and a teacher on them."""
    folder = tmp_path_factory.mktemp("latents")
    vae = small_folder(folder / "vae", seed=3)
    write_config(folder, latent_config(tiny_config(), folder=vae))
    shutil.copyfile(bench.folder / "backbone.safetensors", folder / "backbone.safetensors")
    assert main(["convert", "--source", str(vae), "--output", str(folder / "codec.safetensors")]) == 0
    config = yaml.safe_load((folder / "config.yaml").read_text())
    block = {key: config["datasets"]["latents"][key] for key in ("name", "codec")}
    words = ["--source", str(bench.folder / "digits.zip"), "--codec", str(folder / "codec.safetensors")]
    words += ["--output", str(folder / "digits.zip")]
    assert main(["prepare", "--dataset", json.dumps(block), *words]) == 0
    made = type(bench)(folder)
    made.run(made.arguments(made.document("digits_edm"), state=folder / "state", output=folder / "runs"))
    (snapshot,) = (folder / "runs/digits_edm/snapshots").iterdir()
    assert main(["convert", "--source", str(snapshot), "--output", str(folder / "teacher.safetensors")]) == 0
    return made


def _document(latents, run, **changes):
    return yaml.safe_load(latents.document(run, batch=8, **changes).read_text())


def test_images_are_draws_that_follow_from_their_places_in_the_run(latents):
    document = _document(latents, "digits_edm")
    first, both = [], []
    for world in (1, 2):
        for rank in range(world):
            ranks = Ranks(rank=rank, world=world, device=torch.device("cpu"))
            training = assemble(run_of(document), files=latents.files(document), ranks=ranks)
            both += [next_data(training, images_seen=seen, ranks=ranks).images for seen in (0, 8)]
    one, other, even, even_later, odd, odd_later = both
    assert one.shape == (8, 4, 8, 8) and not torch.equal(one, other)
    assert torch.equal(one[::2], even) and torch.equal(one[1::2], odd)
    assert torch.equal(other[::2], even_later) and torch.equal(other[1::2], odd_later)
    # One image of the dataset at two places of the run is two draws of one posterior.
    few = _document(latents, "digits_edm", subset={"images": 1, "seed": 0})
    training = assemble(run_of(few), files=latents.files(few), ranks=ALONE)
    first = next_data(training, images_seen=0, ranks=ALONE).images
    mean, deviation = training.pixels[0].chunk(2)
    shift, scale = (torch.tensor(training.run.codec.options[key])[:, None, None] for key in ("means", "deviations"))
    numbers = ((first * scale / 0.5 + shift) - mean) / deviation
    assert len({each.numpy().tobytes() for each in first}) == 8
    assert numbers.mean().abs() < 0.1 and numbers.std() == pytest.approx(1, abs=0.1)


def test_the_archive_has_the_moments_of_its_images(latents, bench):
    archive, codec = (
        opened(latents.folder / "digits.zip", cache=None),
        KL(weights=latents.folder / "codec.safetensors", latents="edm2"),
    )
    pixels = torch.from_numpy(np.stack([ImageZip(source=bench.folder / "digits.zip")[n][0] for n in (0, 700)]))
    assert archive.latents and archive.channels == 4 and archive.resolution == 8 and archive.classes == 10
    found = torch.from_numpy(np.stack([archive[n][0] for n in (0, 700)]))
    assert torch.allclose(found, codec.moments(pixels), atol=1e-5)
    assert archive.codec == dict(codec.origin) and codec.origin["pixels"] == [0, 1]


class _Shown:
    """A discriminator that keeps what it is shown."""

    splits, sees_pictures = (1,), True

    def __init__(self):
        self.seen = []

    def __call__(self, images, condition=None):
        self.seen.append(images)
        return images.mean(dim=(1, 2, 3))[:, None]

    def frozen_features(self, images):
        self.seen.append(images)
        return ((images.mean(dim=(1, 2, 3))[:, None],),)

    def heads(self, features, condition=None):
        return features[0][0]


def test_the_discriminator_sees_decoded_pixels_with_a_gradient(latents):
    document = _document(latents, "digits_d2o")
    training = assemble(run_of(document), files=latents.files(document), ranks=ALONE)
    (batch,) = next_data(training, images_seen=0, ranks=ALONE).batches("generator")
    objective, shown = D2O(**training.run.objective.options), _Shown()
    networks = {"generator": training.networks["generator"], "discriminator": shown}
    objective.generator_loss(networks, batch).value.backward()
    assert shown.seen[0].shape == (8, 1, 16, 16) and shown.seen[0].dtype == torch.float32
    gradients = [p.grad for p in training.networks["generator"].parameters() if p.grad is not None]
    assert any(each.abs().max() > 0 for each in gradients)
    objective.discriminator_loss(networks, batch)
    assert shown.seen[1].shape == (16, 1, 16, 16)
    assert torch.equal(shown.seen[1][8:], training.codec.pictures(batch.images))
    assert not any(p.requires_grad for p in training.codec.network.parameters())
    shown.sees_pictures = False  # as of a discriminator of the denoiser's own space
    objective.discriminator_loss(networks, batch)
    assert torch.equal(shown.seen[2][8:], batch.images)


@pytest.mark.parametrize("run", ["digits_edm", "digits_d2o"])
def test_a_restored_state_trains_on_bitwise(latents, tmp_path, run):
    document = _document(latents, run)
    straight = trained_steps(latents, document, tmp_path / "straight", first=0, last=3)
    trained_steps(latents, document, tmp_path / "stopped", first=0, last=2)
    # To compute activations again, those of the decoder too, changes no bit.
    resumed = trained_steps(latents, document | {"recompute": True}, tmp_path / "stopped", first=2, last=3)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


def test_two_processes_train_as_one_does(latents, tmp_path):
    tasks = [task(latents, run, steps=3, batch_norm="held", batch=8) for run in ("digits_edm", "digits_d2o")]
    both = [train_in_ranks(latents, tasks, tmp_path / str(world), world=world) for world in (1, 2)]
    for (one, alone), (other, together) in zip(*both, strict=True):
        assert (one["ranks"], other["ranks"]) == (1, 2) and other["equal"]
        assert_same_losses(one, other)
        for key in alone:
            assert (together[key] - alone[key]).norm() <= 0.02 * alone[key].norm() + 1e-6, key


def test_samples_are_decoded(latents, tmp_path):
    teacher, codec = latents.folder / "teacher.safetensors", latents.folder / "codec.safetensors"
    note = read_snapshot(teacher).note["codec"]
    assert note["name"] == "kl" and note["weights_sha256"] == read_snapshot(codec).note["sha256"]
    words = ["--seeds", "0-3", "--sampler", "one_step"]
    assert main(["sample", str(teacher), str(tmp_path / "a.npz"), "--codec", str(codec), *words]) == 0
    given = [*words[:2], "--sampler", json.dumps({"name": "one_step"}), "--model", "m", "--sampler-name", "s"]
    assert main(["sample", str(teacher), str(tmp_path / "b.npz"), "--codec", str(codec), *given]) == 0
    one, (other, about) = read_arrays(tmp_path / "a.npz").arrays["pixels"], read_arrays(tmp_path / "b.npz")
    assert one.shape == (4, 16, 16, 1) and one.dtype == np.uint8
    assert np.abs(one.astype(int) - other["pixels"]).max() <= 1
    assert about["codec_sha256"] == note["weights_sha256"]


def test_a_converted_teacher_notes_the_codec_that_it_is_given(latents, tmp_path, capsys):
    """A network from outside has no codec in its file: here it is a snapshot without one."""
    found = read_snapshot(latents.folder / "teacher.safetensors")
    write_snapshot(tmp_path / "plain.safetensors", found.state_dict, found.config)
    picture, codec = tmp_path / "a.png", str(latents.folder / "codec.safetensors")
    assert main(["sample", str(tmp_path / "plain.safetensors"), str(picture)]) == 1
    assert "4 channels" in capsys.readouterr().err
    words = ["--source", str(tmp_path / "plain.safetensors"), "--output", str(tmp_path / "teacher.safetensors")]
    assert main(["convert", *words, "--codec", json.dumps(CODEC)]) == 0
    assert main(["sample", str(tmp_path / "teacher.safetensors"), str(picture), "--codec", codec]) == 0
    assert read_snapshot(tmp_path / "teacher.safetensors").note["codec"] == CODEC and picture.exists()


@pytest.mark.parametrize("fault", ["none", "another", "beside_pixels"])
def test_samples_without_their_codec_are_refused(latents, bench, tmp_path, capsys, fault):
    weights = (bench if fault == "beside_pixels" else latents).folder / "teacher.safetensors"
    other = small_folder(tmp_path / "other", seed=4)
    words = [] if fault == "none" else ["--codec", str(other)]
    assert main(["sample", str(weights), str(tmp_path / "a.npz"), *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("Fix:") == 1 and "codec" in line or str(other) in line
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("fault", ["pixels", "weights", "channels", "no_codec"])
def test_latents_of_another_codec_are_refused(latents, tmp_path, fault):
    document = _document(latents, "digits_edm")
    files, codec = latents.files(document), document["codec"]
    if fault == "pixels":
        document["codec"] = {"name": "kl", "input": "vae", "latents": "stable_diffusion"}
    elif fault == "no_codec":
        del document["codec"]
    else:
        changes = {"seed": 9} if fault == "weights" else {"latent_channels": 3}
        folder = small_folder(tmp_path / "vae", **changes)
        assert main(["convert", "--source", str(folder), "--output", str(tmp_path / "codec.safetensors")]) == 0
        files = type(files)(**{**vars(files), "codec": tmp_path / "codec.safetensors"})
        document["codec"] = {**codec, "means": codec["means"][:3], "deviations": codec["deviations"][:3]}
        if fault == "weights":
            document["codec"] = codec
    with pytest.raises(ValueError, match=r"digits\.zip: .*Fix: ") as caught:
        assemble(run_of(document), files=files, ranks=ALONE)
    assert "\n" not in str(caught.value)


def test_its_memory_is_estimated(latents):
    config = latent_config(tiny_config(), folder=latents.folder / "vae")
    found = run_footprint(parse_experiment(config), "digits_d2o", on_cuda=False)
    assert found.peak(16) > found.peak(8) > found.resident > 0
    config["runs"]["digits_d2o"]["recompute"] = True
    again = run_footprint(parse_experiment(config), "digits_d2o", on_cuda=False)
    assert again.phases["generator"].saved < found.phases["generator"].saved


@pytest.mark.long
def test_a_killed_run_ends_bitwise_as_one_that_was_not(latents, tmp_path):
    changes = {"batch": 8, "images": 48, "snapshot_every": 48, "snapshots": [48]}
    run = latents.document("digits_d2o", **changes)
    straight = train(latents, run, tmp_path.name + "straight")
    train(latents, run, tmp_path.name + "killed", kill_at=5, expect=-signal.SIGKILL)
    resumed = train(latents, run, tmp_path.name + "killed")
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 6
    one, other = ((each / "snapshots/48.safetensors").read_bytes() for each in (straight, resumed))
    assert one == other
