"""Objectives with other networks than D2O's: a frozen teacher with an EMA target; a second network; instance losses.

Those from outside the package are one file in a temporary folder each, named `module:Class` in the run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.checkpoints.training_state import read_training_state
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.training.assignment import Inputs
from onestep.training.log import Settled
from onestep.training.loop import next_data, take_step
from onestep.training.resume import Resume
from onestep.training.run import assemble
from preloaded import Program

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))

_HEAD = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from onestep.objectives import AverageOf, Loss, Phase, Pretrained, TeacherCopy

def level(sigma):
    return sigma[:, None, None, None]
"""

_CONSISTENCY = """
@dataclass(frozen=True, kw_only=True)
class Consistency:
    '''Consistency distillation (arXiv:2303.01469, algorithm 2), with an Euler step of 20 % of the noise level.'''

    half_life: float
    publishes: ClassVar[str] = "generator"
    samples_in: ClassVar[int | None] = 1

    def networks(self):
        target = AverageOf(role="generator", half_life=self.half_life)
        return {"generator": Pretrained(), "teacher": TeacherCopy(), "target": target}

    def phases(self):
        return (Phase(name="consistency", trains="generator", loss=self.loss),)

    def loss(self, networks, batch):
        high = (batch.random.normal() - 1).exp()
        low = 0.8 * high
        noisy = batch.images + level(high) * batch.random.normal(*batch.images.shape[1:])
        with torch.no_grad():
            slope = (noisy - networks["teacher"](noisy, high, batch.condition)) / level(high)
            target = networks["target"](noisy + level(low - high) * slope, low, batch.condition)
        error = networks["generator"](noisy, high, batch.condition) - target
        return Loss(value=error.square().mean())
"""

_MATCHING = """
@dataclass(frozen=True, kw_only=True)
class Matching:
    '''Distribution matching (arXiv:2405.14867): a second denoiser of the generator's images, trained on every step.'''

    sigma: float
    every: int
    publishes: ClassVar[str] = "generator"
    samples_in: ClassVar[int | None] = 1

    def networks(self):
        return {"generator": Pretrained(), "teacher": TeacherCopy(), "fake": TeacherCopy(frozen=False)}

    def phases(self):
        rare = Phase(name="generator", trains="generator", loss=self.generator_loss, every=self.every)
        return (rare, Phase(name="fake", trains="fake", loss=self.fake_loss))

    def noised(self, networks, batch):
        noise = batch.random.normal(*batch.images.shape[1:])
        images = networks["generator"](self.sigma * noise, noise.new_full((len(noise),), self.sigma), batch.condition)
        sigma = (batch.random.normal() - 1).exp()
        return images, images + level(sigma) * batch.random.normal(*images.shape[1:]), sigma

    def generator_loss(self, networks, batch):
        images, noisy, sigma = self.noised(networks, batch)
        with torch.no_grad():
            direction = networks["fake"](noisy, sigma, None) - networks["teacher"](noisy, sigma, None)
        return Loss(value=(direction * images).mean())

    def fake_loss(self, networks, batch):
        with torch.no_grad():
            images, noisy, sigma = self.noised(networks, batch)
        return Loss(value=(networks["fake"](noisy, sigma, None) - images).square().mean())
"""

_ADAM = {"name": "adam", "lr": 1e-4, "betas": [0.0, 0.99], "eps": 1e-8}
_CASES = {
    "consistency": ({"name": "toy_consistency:Consistency", "half_life": 64.0}, _CONSISTENCY, ["generator"]),
    "matching": ({"name": "toy_matching:Matching", "sigma": 80.0, "every": 5}, _MATCHING, ["generator", "fake"]),
    # With images that the teacher moves and images that the average moves, in both moves.
    "instance": (
        {
            "name": "instance",
            "kind": "ctm",
            "steps": 4,
            "distance": {"name": "features", "backbone": "digits"},
            "target": "ema",
            "target_half_life": 64.0,
        },
        "",
        ["generator"],
    ),
    "variational_score": (
        {"name": "variational_score", "loss": "sid", "alpha": 1.2, "sigma": 2.5, "grid": [0.0, 0.8], "updates": 2},
        "",
        ["generator", "fake"],
    ),
}
_SAVED = {
    "variational_score": {"generator", "fake"},
    "consistency": {"generator", "target"},
    "matching": {"generator", "fake"},
    "instance": {"generator", "target"},
}
_FROZEN = {"instance": ["distance", "teacher"]}


@pytest.fixture(params=[pytest.param(each, marks=pytest.mark.long if each == "matching" else ()) for each in _CASES])
def case(request, bench, tmp_path, monkeypatch):
    """Name and run.yaml of an objective whose file is in the temporary folder."""
    objective, source, trained = _CASES[request.param]
    (tmp_path / f"toy_{request.param}.py").write_text(textwrap.dedent(_HEAD + source))
    monkeypatch.syspath_prepend(tmp_path)
    document = yaml.safe_load(bench.document("digits_d2o", batch=8, images=96, snapshots=[96]).read_text())
    del document["discriminator"]
    document |= {"objective": objective, "optimizers": dict.fromkeys(trained, _ADAM), "dropout": 0.1}
    if request.param == "variational_score":
        document["preconditioning"] = "edm"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    return request.param, tmp_path / "run.yaml"


def train(bench, run, name, *, kill_at=0, world=1, expect=0):
    """Train in `world` processes below the folder `name`; return the folder of the published run."""
    folder = run.parent / name
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    environment = {**os.environ, "KILL_AT": str(kill_at), "STATE": str(folder / "state"), "OUTPUT": str(folder)}
    environment |= {"PYTHONPATH": f"{run.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    worker = Path(__file__).with_name("open_worker.py")
    ranks = [
        Program(
            worker, str(run), str(bench.folder), environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(world)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=300)
        assert rank.returncode == expect, output
    return folder / "digits_d2o"


def inputs_of(bench, run, *, teacher):
    """Return the files of a run."""
    backbones = {"digits": bench.folder / "backbone.safetensors"}
    return Inputs(run=run, data=bench.folder / "digits.zip", teacher=teacher, backbones=backbones)


def losses(folder):
    """Return the losses of each record of a published run."""
    return [json.loads(line)["losses"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_resumes_bitwise_and_trains_alike_on_two_ranks(case, bench):
    name, run = case
    straight = train(bench, run, "straight")
    train(bench, run, "killed", kill_at=8, expect=-signal.SIGKILL)
    state = read_training_state(run.parent / "killed/state/digits_d2o/spec")
    # A state is written while the run trains on: the newest one may not have been whole.
    assert state.images_seen in (48, 56)
    saved = {tensor.split(".")[1] for tensor in state.tensors if tensor.startswith("player.")}
    assert saved == _SAVED[name]
    assert list(state.values["frozen"]) == _FROZEN.get(name, ["teacher"])
    resumed = train(bench, run, "killed")
    for file in ("snapshots/96.safetensors", "log.jsonl"):
        if file != "log.jsonl":
            assert (straight / file).read_bytes() == (resumed / file).read_bytes()
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 12

    if name == "variational_score":  # a file alone has the noise level that its law does not imply
        note = read_snapshot(resumed / "snapshots/96.safetensors").note
        assert note["sampler"] == {"name": "one_step", "sigma": 2.5}

    # Dropout is drawn per rank, so the comparison of ranks is without it.
    document = yaml.safe_load(run.read_text()) | {"dropout": 0.0}
    run.write_text(yaml.safe_dump(document))
    if name == "matching":
        # The teacher of the demo has no dropout, nor has its trainable copy.
        assert [sorted(record) for record in losses(straight)][4:7] == [["fake"], ["fake", "generator"], ["fake"]]
    one, two = (losses(train(bench, run, f"world{world}", world=world)) for world in (1, 2))
    share = 1e-5 if name == "variational_score" else 1e-4
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        for phase in left:
            assert right[phase] == pytest.approx(left[phase], rel=share, abs=1e-6), phase


def test_a_run_trains_in_the_space_of_its_codec(bench, tmp_path, monkeypatch):
    """Here the mean of 2x2 pixels: images of half the size, so the denoiser is of that size, too."""
    source = """
    from dataclasses import dataclass
    from torch.nn import functional as F

    @dataclass(frozen=True, kw_only=True)
    class Pool:
        factor: int

        def encode(self, pixels):
            return F.avg_pool2d(pixels.float() / 127.5 - 1, self.factor)
    """
    (tmp_path / "toy_codec.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    document = yaml.safe_load(bench.document("digits_edm", batch=4, images=8, snapshots=[8]).read_text())
    document |= {"codec": {"name": "toy_codec:Pool", "factor": 2}}
    document["network"] |= {"attn_resolutions": [4]}
    training = assemble(run_of(document), files=bench.files(document), ranks=ALONE)
    data = next_data(training, images_seen=0, ranks=ALONE)
    assert data.images.shape == (4, 1, 8, 8) and training.configs["generator"]["img_resolution"] == 8
    pixels = training.pixels.float().div(127.5).sub(1).mean(dim=(1, 2, 3))
    assert all((pixels - mean).abs().min() < 1e-6 for mean in data.images.mean(dim=(1, 2, 3)))
    (report,) = take_step(training, images_seen=4, ranks=ALONE)
    assert torch.isfinite(report.loss)


def test_roles_are_built_as_their_origins_state(case, bench):
    name, run = case
    teacher = bench.folder / "teacher.safetensors"
    files = inputs_of(bench, run, teacher=teacher)
    resolved = run_of(yaml.safe_load(run.read_text()))
    training = assemble(resolved, files=files, ranks=ALONE)
    wanted = load_file(teacher)
    copy = training.networks["teacher"]
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in copy.state_dict().items())
    assert not copy.training and not any(p.requires_grad for p in copy.parameters())
    # A step of the generator on every fifth step is no lazy regularizer: Adam's constants are those of the run.
    for optimizer in training.optimizers.values():
        (group,) = optimizer.torch.param_groups
        assert (group["lr"], tuple(group["betas"])) == (1e-4, (0.0, 0.99))
    if name in ("consistency", "instance"):
        target = training.networks["target"]
        assert not any(p.requires_grad for p in target.parameters())
        assert set(training.followers) == {"target"} and set(training.optimizers) == {"generator"}

    # Another teacher than that of a state is refused.
    folder = run.parent / "state"
    resume = Resume(training, folder=folder, ranks=ALONE, code="")
    resume.restore()
    resume.save(images_seen=8, log=Settled(0, ""), window=resume.window)
    snapshot = read_snapshot(teacher)
    changed = {key: tensor + 1 for key, tensor in snapshot.state_dict.items()}
    write_snapshot(run.parent / "other.safetensors", changed, snapshot.config)
    files = inputs_of(bench, run, teacher=run.parent / "other.safetensors")
    other = assemble(resolved, files=files, ranks=ALONE)
    with pytest.raises(ValueError, match="teacher") as error:
        Resume(other, folder=folder, ranks=ALONE, code="").restore()
    assert "\n" not in str(error.value)


def test_an_instance_loss_beside_a_gan_loss_resumes_bitwise(bench, tmp_path):
    document = yaml.safe_load(bench.document("digits_d2o", batch=8, images=48, snapshots=[48]).read_text())
    distance = {"name": "features", "backbone": "digits"}
    objective = {"name": "instance", "kind": "cd", "steps": 4, "distance": distance, "beside": document["objective"]}
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(document | {"objective": objective, "dropout": 0.1}))
    straight = train(bench, run, "straight")
    train(bench, run, "killed", kill_at=5, expect=-signal.SIGKILL)
    resumed = train(bench, run, "killed")
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 6
    assert {"generator", "discriminator", "r1"} == set().union(*losses(straight))
    one, other = ((each / "snapshots/48.safetensors").read_bytes() for each in (straight, resumed))
    assert one == other
