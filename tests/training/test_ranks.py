"""Several processes hold the same parameters, and train as one does on the same batch."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from image_archives import write_archive
from onestep.data.image_zip import ImageZip
from preloaded import Program

_ADA = {
    "name": "stylegan2_ada",
    "probability": 0.5,
    "operations": {"xflip": 1.0, "brightness": 1.0},
    "target": 0.0,
    "interval": 3,
    "ramp_images": 500,
}


def task(bench, run, *, steps, batch_norm, batch=16, **blocks):
    """Return a tiny run as a task of the worker, with keys of its blocks changed."""
    document = yaml.safe_load(bench.document(run, batch=batch).read_text())
    for block, changes in blocks.items():
        document[block] |= changes
    return {"run": document, "steps": steps, "batch_norm": batch_norm}


def train_in_ranks(bench, tasks, folder, *, world):
    """Carry out tasks in `world` processes of one thread; return of each what rank 0 reports, and the updates."""
    folder.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": str(world)}
    (folder / "tasks.json").write_text(json.dumps(tasks))
    worker = Path(__file__).with_name("ranks_worker.py")
    arguments = [str(folder / "tasks.json"), str(bench.folder), str(folder / "report.json")]
    ranks = [
        Program(worker, *arguments, environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]
    for rank in ranks:
        said, _ = rank.communicate(timeout=300)
        assert rank.returncode == 0, said
    reports = json.loads((folder / "report.json").read_text())
    return [(report, load_file(folder / f"{number}.safetensors")) for number, report in enumerate(reports)]


def assert_same_losses(one, other):
    for left, right in zip(one["losses"], other["losses"], strict=True):
        assert left.keys() == right.keys()
        for phase in left:
            assert right[phase] == pytest.approx(left[phase], rel=1e-5, abs=1e-5), phase


def assert_two_train_as_one(bench, made, folder):
    """Carry out a task in one process and in two: the same losses, steered numbers, and nearly the same updates."""
    (one, alone), (other, together) = (
        train_in_ranks(bench, [made], folder / str(world), world=world)[0] for world in (1, 2)
    )
    assert (one["ranks"], other["ranks"]) == (1, 2) and other["equal"]
    assert_same_losses(one, other)
    for step, wanted in zip(other["controls"], one["controls"], strict=True):
        for name, value in wanted.items():
            assert step[name] == pytest.approx(value, rel=1e-5), name
    for key in alone:
        apart = (together[key] - alone[key]).norm()
        assert apart <= 0.02 * alone[key].norm() + 1e-6, key


@pytest.fixture(scope="module")
def eight(bench, tmp_path_factory):
    """What eight ranks made of some runs on few images, and one process of those that it should train alike."""
    folder = tmp_path_factory.mktemp("ranks")
    few = type(bench)(folder / "bench")
    few.folder.mkdir()
    for name in ("config.yaml", "teacher.safetensors", "backbone.safetensors"):
        (few.folder / name).hardlink_to(bench.folder / name)
    digits = ImageZip(source=bench.folder / "digits.zip")
    write_archive(few.folder / "digits.zip", (digits[index] for index in range(40)))
    # Few steps: a GAN under Adam multiplies rounding, on some processors to 1e-5 within twenty steps of "held" and
    # within four of "chain", whose second pass adds to it.
    chain = {"discriminator": {"projection": "shared"}, "objective": {"steps": 2, "middle": 0.8}}
    tasks = {
        "denoiser": task(few, "digits_edm", steps=10, batch_norm="training"),
        "held": task(few, "digits_d2o", steps=8, batch_norm="held", discriminator={"projection": "shared"}),
        "chain": task(few, "digits_d2o", steps=2, batch_norm="held", **chain),
        "shared": task(few, "digits_d2o", steps=20, batch_norm="training", discriminator={"projection": "shared"}),
        "per_rank": task(few, "digits_d2o", steps=20, batch_norm="training", discriminator={"projection": "per_rank"}),
        "steered": task(few, "digits_d2o", steps=6, batch_norm="training", objective={"augment": _ADA}),
    }
    found = dict(zip(tasks, train_in_ranks(few, list(tasks.values()), folder / "8", world=8), strict=True))
    compared = ("denoiser", "held", "chain")
    alone = train_in_ranks(few, [tasks[name] for name in compared], folder / "1", world=1)
    return found | {f"{name} alone": each for name, each in zip(compared, alone, strict=True)}


@pytest.mark.parametrize(("projection", "different"), [("shared", 1), ("per_rank", 8)])
def test_eight_ranks_hold_the_same_parameters_with_either_projection(eight, projection, different):
    report, updates = eight[projection]
    assert (report["ranks"], len(report["losses"]), report["projections"]) == (8, 20, different)
    assert report["equal"]
    assert all(update.any() for update in updates.values())


def test_eight_ranks_steer_alike(eight):
    report, _ = eight["steered"]
    assert report["equal"]
    steered = [step["augment_probability"] for step in report["controls"]]
    # By 3 x 16 images of 500 after every third step, up or down.
    assert steered[:2] == [0.5, 0.5] and steered[2] == steered[4] and steered[2] != steered[5]
    assert abs(steered[2] - 0.5) == abs(steered[5] - steered[2]) == pytest.approx(48 / 500)


@pytest.mark.parametrize("run", ["denoiser", "held", "chain"])
def test_eight_ranks_have_the_losses_of_one_process_and_equal_parameters(eight, run):
    """Of D2O: with one projection, and the heads' batch norms held, which else see the rows of a rank alone."""
    (one, _), (other, _) = eight[f"{run} alone"], eight[run]
    assert other["equal"] and (one["ranks"], other["ranks"]) == (1, 8)
    assert_same_losses(one, other)


def test_eight_ranks_take_the_steps_of_one_process(eight):
    (_, alone), (_, together) = eight["held alone"], eight["held"]
    assert alone.keys() == together.keys()
    for name, update in alone.items():
        apart, update = together[name] - update, update.clone()
        if name.endswith("qkv.bias"):
            # Every third is a key's. The same number on all keys changes no attention, so the gradient is 0 but for
            # rounding, which Adam takes for as good a direction as any.
            apart[1::3] = update[1::3] = 0
        assert apart.abs().max() <= 1e-5, name
        assert apart.norm() <= 1e-4 * update.norm(), name
