"""Regression on pairs of noise and image: the noise is the sampler's, a killed run resumes, two ranks train alike."""

from __future__ import annotations

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
import yaml
from test_open_objectives import losses, train

from onestep.archive import read_arrays, write_arrays
from onestep.checkpoints.training_state import read_training_state
from onestep.cli import main
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.sampling import per_seed_noise
from onestep.training.log import Settled
from onestep.training.loop import next_data, take_step
from onestep.training.resume import Resume
from onestep.training.run import assemble

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
ONE_STEP = {"name": "one_step", "sigma": 2.5}


@pytest.fixture(scope="module")
def pairs(bench, tmp_path_factory):
    """Files of pairs by sampler, two blocks of seeds each, as the workflow makes them."""
    folder = tmp_path_factory.mktemp("pairs")
    samplers = {"one_step": ONE_STEP, "heun": {"name": "heun", "steps": 3}}
    for name, sampler in samplers.items():
        for seeds in ("100-163", "200-231"):
            words = ["--weights", str(bench.folder / "teacher.safetensors"), "--model", "digits", "--seeds", seeds]
            words += ["--sampler", json.dumps(sampler), "--sampler-name", name]
            words += ["--grid", str(folder / "grid.npz"), "--output", str(folder / f"{name}.{seeds}.npz")]
            assert main(["sample", *words]) == 0
    return {name: tuple(folder / f"{name}.{seeds}.npz" for seeds in ("100-163", "200-231")) for name in samplers}


def written(bench, path, *, sampler="heun", **changes):
    """Write the run.yaml of a regression, and return its document."""
    document = yaml.safe_load(bench.document("digits_d2o", batch=8, images=96, snapshots=[96]).read_text())
    del document["discriminator"]
    objective = {"name": "paired_regression", "distance": {"name": "l2"}, "sigma": 2.5}
    document |= {"objective": objective, "preconditioning": "edm"}
    document |= {"pairs": {"sampler": sampler, "seeds": ["100-163", "200-231"]}}
    document |= {"optimizers": {"generator": {"name": "adam", "lr": 1e-4}}} | changes
    path.write_text(yaml.safe_dump(document))
    return document


def assembled(bench, document, files):
    return assemble(run_of(document), files=dataclasses.replace(bench.files(document), pairs=files), ranks=ALONE)


def test_the_noise_of_a_pair_is_that_from_which_the_sampler_made_its_image(bench, pairs, tmp_path):
    """The teacher's own images of one step are regressed by the teacher: what is left is their rounding to 8 bits."""
    training = assembled(bench, written(bench, tmp_path / "run.yaml", sampler="one_step"), pairs["one_step"])
    (phase,) = training.phases
    data = next_data(training, images_seen=0, ranks=ALONE)
    (batch,) = data.batches(phase.name)
    with torch.no_grad():
        loss = phase.loss(training.networks, batch)
    assert loss.value < (1 / 127.5) ** 2
    noise, images, condition = training.networks["pairs"](torch.tensor([0.0, 0.5, 0.999]))
    assert condition is None and images.shape == noise.shape == (3, 1, 16, 16)
    assert torch.equal(noise, per_seed_noise([100, 148, 231], (1, 16, 16)))
    pixels = np.concatenate([read_arrays(path, ["pixels"]).arrays["pixels"] for path in pairs["one_step"]])
    shown = torch.from_numpy(pixels[[0, 48, 95]]).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(images, shown)


def test_fresh_weights_learn_the_pairs(bench, pairs, tmp_path):
    adam = {"generator": {"name": "adam", "lr": 2e-3}}
    document = written(bench, tmp_path / "run.yaml", init={"from": "none"}, optimizers=adam, batch=16)
    training = assembled(bench, document, pairs["heun"])
    found = [float(take_step(training, images_seen=16 * step, ranks=ALONE)[0].loss) for step in range(25)]
    assert np.mean(found[-5:]) < 0.8 * found[0]


def test_it_resumes_bitwise_and_trains_alike_on_two_ranks(bench, pairs, tmp_path, monkeypatch):
    run = tmp_path / "run.yaml"
    written(bench, run, dropout=0.1, init={"from": "none"})
    monkeypatch.setenv("PAIRS", ":".join(map(str, pairs["heun"])))
    straight = train(bench, run, "straight")
    train(bench, run, "killed", kill_at=8, expect=-signal.SIGKILL)
    state = read_training_state(tmp_path / "killed/state/digits_d2o/spec")
    assert list(state.values["frozen"]) == ["pairs"] and state.images_seen in (48, 56)
    resumed = train(bench, run, "killed")
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 12
    one, other = ((each / "snapshots/96.safetensors").read_bytes() for each in (straight, resumed))
    assert one == other
    written(bench, run, dropout=0.0, init={"from": "none"})
    alone, together = (losses(train(bench, run, f"world{world}", world=world)) for world in (1, 2))
    for left, right in zip(alone, together, strict=True):
        assert right == pytest.approx(left, rel=1e-5, abs=1e-5)


def changed(path, target, **arrays):
    """Write a file of images with some arrays or facts of it changed."""
    found = read_arrays(path)
    about = {**found.about, **{key: arrays.pop(key) for key in ("subject", "sampler") if key in arrays}}
    write_arrays(target, {**found.arrays, **arrays}, about=about)
    return target


def test_pairs_that_are_not_those_of_the_run_are_refused_in_one_line(bench, pairs, tmp_path):
    document = written(bench, tmp_path / "run.yaml")
    first, second = pairs["heun"]
    subject = {"model": "digits", "sampler": "heun", "seeds": "200-231"}
    grey, other = np.zeros((32, 16, 16, 1), np.uint8), tmp_path / "other.npz"
    cases = {
        "files": (first,),
        "seeds 200-231": (second, first),
        "sampler one_step": (first, pairs["one_step"][1]),
        "model someone": (first, changed(second, other, subject=subject | {"model": "someone"})),
        "churn": (first, changed(second, tmp_path / "1.npz", sampler={"name": "heun", "churn": 1.0})),
        "[1, 8, 8]": (first, changed(second, tmp_path / "2.npz", pixels=grey[:, ::2, ::2])),
        "conditional": (first, changed(second, tmp_path / "3.npz", labels=np.ones(32, np.int64))),
        "one for each seed": (first, changed(second, tmp_path / "4.npz", seeds=np.arange(32))),
    }
    for word, files in cases.items():
        with pytest.raises(ValueError) as error:
            assembled(bench, document, files)
        assert word in str(error.value) and "\n" not in str(error.value), word
    del document["pairs"]
    with pytest.raises(ValueError, match="pairs: got none"):
        assembled(bench, document, ())


def test_other_pairs_than_those_of_a_state_are_refused(bench, pairs, tmp_path):
    document = written(bench, tmp_path / "run.yaml")
    training = assembled(bench, document, pairs["heun"])
    resume = Resume(training, folder=tmp_path / "state", ranks=ALONE, code="")
    resume.restore()
    resume.save(images_seen=8, log=Settled(0, ""), window=resume.window)
    first, second = pairs["heun"]
    pixels = 255 - read_arrays(second, ["pixels"]).arrays["pixels"]
    other = assembled(bench, document, (first, changed(second, tmp_path / "other.npz", pixels=pixels)))
    with pytest.raises(ValueError, match="pairs"):
        Resume(other, folder=tmp_path / "state", ranks=ALONE, code="").restore()


def test_pairs_of_classes_give_the_condition_of_their_images(bench, pairs, tmp_path):
    from onestep.autoencoders.identity import Identity
    from onestep.training.stored_pairs import stored_pairs

    run = run_of(written(bench, tmp_path / "run.yaml")).run
    labels = [np.arange(64) % 10, np.arange(32) % 10]
    files = [changed(path, tmp_path / path.name, labels=each) for path, each in zip(pairs["heun"], labels, strict=True)]
    options = {"run": run, "codec": Identity(), "shape": (1, 16, 16)}
    found = stored_pairs(files, classes=10, **options)(torch.tensor([0.0, 0.01, 0.7]))
    assert found.condition.argmax(dim=1).tolist() == [0, 0, 3] and found.condition.sum() == 3
    with pytest.raises(ValueError, match="classes 0 to 9, expected 0 to 3"):
        stored_pairs(files, classes=4, **options)
