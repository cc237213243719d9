"""Activations computed again in the backward pass: the same gradients, states of generators and files, to the bit."""

from __future__ import annotations

import pytest
import torch

from onestep.bench.option_sets import option_set
from onestep.bench.random_run import random_training, random_wrapped, shape_of
from onestep.config import parse_experiment
from onestep.distributed import Ranks
from onestep.training.loop import next_data
from onestep.training.step import set_training_mode, train_step
from tiny import tiny_config

_RANKS = Ranks(rank=0, world=1, device=torch.device("cpu"))


def step(run: str, *, options: str = "ours", **changes):
    """Take a step of all phases; return gradients and weights by phase, and the state of torch's generator."""
    config = tiny_config()
    config["runs"][run] |= changes
    experiment = parse_experiment(config)
    chosen, shape = option_set(options), shape_of(experiment, run, given={})
    torch.manual_seed(5)
    training = random_training(experiment, run, options=chosen, shape=shape, batch=4, ranks=_RANKS)
    wrapped = random_wrapped(training, options=chosen)
    set_training_mode(training.networks, phases=training.phases)
    data = next_data(training, images_seen=0, ranks=_RANKS)
    found = {}
    for phase in training.phases:
        train_step(
            (phase,),
            networks=training.networks,
            wrapped=wrapped,
            optimizers=training.optimizers,
            data=data,
            ranks=_RANKS,
        )
        for name, parameter in training.networks[phase.trains].named_parameters():
            if parameter.requires_grad:
                found[phase.name, name] = (parameter.grad.clone(), parameter.detach().clone())
    return found, torch.get_rng_state()


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"dropout": 0.3}, "ours"),
        ({"dropout": 0.3, "freeze": ["conv", "proj"]}, "bf16_generator+bf16_discriminator"),
        ({"objective": {"name": "d2o", "r1_gradient": "forward_mode"}}, "channels_last"),
    ],
)
def test_gradients_updates_and_random_numbers_are_the_same_to_the_bit(changes, options):
    plain, generator = step("digits_d2o", options=options, **changes)
    again, same_generator = step("digits_d2o", options=options, recompute=True, **changes)
    assert plain.keys() == again.keys()
    for key, values in plain.items():
        assert all(torch.equal(one, other) for one, other in zip(values, again[key], strict=True)), key
    assert torch.equal(generator, same_generator)


def test_a_teacher_with_dropout_trains_the_same():
    plain, generator = step("digits_edm")
    again, same_generator = step("digits_edm", recompute=True)
    for key, values in plain.items():
        assert all(torch.equal(one, other) for one, other in zip(values, again[key], strict=True)), key
    assert torch.equal(generator, same_generator)


@pytest.mark.long
def test_two_ranks_publish_the_same_files_and_the_run_hash_stays(bench, tmp_path):
    found = []
    for recompute in (False, True):
        changes = {"dropout": 0.3} | ({"recompute": True} if recompute else {})
        document = bench.document("digits_d2o", images=64, snapshots=[64], **changes)
        folder = tmp_path / str(recompute)
        arguments = bench.arguments(document, state=folder / "state", output=folder / "runs")
        bench.run([*arguments, "--processes", "2"])
        (spec,) = (folder / "state/digits_d2o").iterdir()
        found.append((spec.name, (folder / "runs/digits_d2o/snapshots/64.safetensors").read_bytes()))
    assert found[0] == found[1]


def test_a_run_without_such_a_part_is_one_line():
    with pytest.raises(ValueError, match="recompute: got true, expected false"):
        step("digits_backbone", recompute=True)
