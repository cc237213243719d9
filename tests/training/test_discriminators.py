"""Each discriminator under objective D2O: a restored state trains on bitwise, two processes train as one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from test_ranks import assert_same_losses, task, train_in_ranks

from onestep import components
from onestep.bench.estimate import run_footprint
from onestep.config import parse_experiment
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.training.log import Settled
from onestep.training.loop import take_step
from onestep.training.resume import Resume
from onestep.training.run import assemble
from onestep.training.step import set_training_mode
from tiny import tiny_config

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
_EYE = {"backbones": ["digits"]}
DISCRIMINATORS: dict[str, dict[str, Any]] = {
    "projected": {"name": "projected", "channels": 4, "resolution": 16, **_EYE},
    "one scale": {"name": "projected", "channels": 4, "resolution": 16, "scales": "last", **_EYE},
    "pooled_features": {"name": "pooled_features", "logits": 3, **_EYE},
    "stylegan2": {"name": "stylegan2", "channel_base": 128, "channel_max": 8},
    "teacher_features": {"name": "teacher_features", "levels": [0], "same_noise": True},
}
# The mean over the batch, a penalty that matters, and an augmentation that adapts to the logits.
_ADA = {"name": "stylegan2_ada", "probability": 0.5, "operations": {"xflip": 1.0, "brightness": 1.0}}
_OBJECTIVE = {"rows_per_rank": 1.0, "r1_gamma": 0.1, "r1_every": 2}
_AUGMENTED = _OBJECTIVE | {
    "r1_gradient": "forward_mode",
    "augment": _ADA | {"target": 0.6, "interval": 2, "ramp_images": 500},
}


def test_every_file_of_the_folder_is_tried():
    assert {block["name"] for block in DISCRIMINATORS.values()} == set(components.choices("discriminators"))


def _config(name):
    config = tiny_config()
    run = config["runs"]["digits_d2o"]
    run["discriminator"], run["objective"] = DISCRIMINATORS[name], run["objective"] | _OBJECTIVE
    return config


def trained_steps(bench, document, folder, *, first, last):
    """Train from the state in a folder to another one; return all numbers of the networks."""
    training = assemble(run_of(document), files=bench.files(document), ranks=ALONE)
    resume = Resume(training, folder=folder, ranks=ALONE, code="")
    assert resume.restore() == first * 8
    set_training_mode(training.networks, phases=training.phases)
    for step in range(first, last):
        for report in take_step(training, images_seen=step * 8, ranks=ALONE):
            assert torch.isfinite(report.loss) and not report.replaced
    resume.save(images_seen=last * 8, log=Settled(0, ""), window=resume.window)
    networks = training.networks.items()
    return {f"{role}.{key}": v.clone() for role, network in networks for key, v in network.state_dict().items()}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_restored_state_trains_on_bitwise(bench, tmp_path, name):
    document = yaml.safe_load(bench.document("digits_d2o", batch=8, discriminator=DISCRIMINATORS[name]).read_text())
    document["objective"] |= _AUGMENTED
    straight = trained_steps(bench, document, tmp_path / "straight", first=0, last=4)
    trained_steps(bench, document, tmp_path / "stopped", first=0, last=2)
    resumed = trained_steps(bench, document, tmp_path / "stopped", first=2, last=4)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


@pytest.fixture(scope="module")
def ranks(bench, tmp_path_factory):
    """What one process and two make of each discriminator, with batch norms of heads held."""
    folder, objective = tmp_path_factory.mktemp("discriminators"), _OBJECTIVE
    tasks = [
        task(bench, "digits_d2o", steps=4, batch_norm="held", objective=objective) | {"discriminator": block}
        for block in DISCRIMINATORS.values()
    ]
    for each in tasks:
        each["run"]["discriminator"] = each.pop("discriminator")
    both = [train_in_ranks(bench, tasks, folder / str(world), world=world) for world in (1, 2)]
    return dict(zip(DISCRIMINATORS, zip(*both, strict=True), strict=True))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_two_processes_train_as_one_does(ranks, name):
    (one, alone), (other, together) = ranks[name]
    assert (one["ranks"], other["ranks"]) == (1, 2) and other["equal"]
    assert_same_losses(one, other)
    for key in (key for key in alone if key.startswith("discriminator.")):
        apart = (together[key] - alone[key]).norm()
        assert apart <= 0.02 * alone[key].norm() + 1e-6, key


@pytest.mark.parametrize(
    "name", ["pooled_features", "stylegan2", pytest.param("teacher_features", marks=pytest.mark.long)]
)
def test_its_memory_is_estimated(name):
    found = run_footprint(parse_experiment(_config(name)), "digits_d2o", on_cuda=False)
    assert set(found.phases) == {"generator", "discriminator", "r1"}
    assert found.peak(16) > found.peak(8) > found.resident > 0
