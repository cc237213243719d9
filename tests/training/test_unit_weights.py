"""EDM2's weights in a training: of unit norm after each step, averages after them, frozen ones as they were."""

from __future__ import annotations

import math

import pytest
import torch

from onestep.bench.option_sets import option_set
from onestep.bench.random_run import random_training, shape_of
from onestep.config import parse_experiment
from onestep.distributed import Ranks
from onestep.networks import build_denoiser, settle_after_steps
from onestep.networks._magnitudes import UnitWeights
from onestep.training.loop import take_step, train
from onestep.training.step import set_training_mode
from tiny import tiny_config, tiny_network

_RANKS = Ranks(rank=0, world=1, device=torch.device("cpu"))
_EDM2 = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "channels_per_head": 8}


def training_of(run, **changes):
    """Return a tiny run whose networks are of EDM2, with random weights."""
    config = tiny_config()
    config["runs"]["digits_edm"]["network"] = {"name": "edm2", "preconditioning": "edm", **_EDM2}
    config["runs"][run] |= {"batch": 4, **changes}
    experiment = parse_experiment(config)
    torch.manual_seed(5)
    shape = shape_of(experiment, run, given={})
    return random_training(experiment, run, options=option_set("reference"), shape=shape, batch=4, ranks=_RANKS)


def layers(network):
    return {name: part for name, part in network.named_modules() if isinstance(part, UnitWeights)}


def rms(weight):
    return weight.detach().flatten(1).square().mean(1).sqrt()


def assert_unit(weight):
    # Up to the small number that the published implementation adds to a norm.
    assert (rms(weight) - 1).abs().max() <= 1e-3


def test_trained_weights_are_of_unit_norm_from_the_start_and_after_each_step():
    training = training_of("digits_d2o_f", freeze=["conv", "proj"], ema={"half_life": 40, "ramp_up": 0.0})
    generator, average = training.networks["generator"], training.averages[""]
    frozen = {name: part.weight.clone() for name, part in layers(generator).items() if not part.weight.requires_grad}
    trained = [name for name, part in layers(generator).items() if part.weight.requires_grad]
    assert frozen and trained
    assert any((rms(weight) - 1).abs().max() > 0.01 for weight in frozen.values())  # random ones are not
    for name in trained:
        assert_unit(layers(generator)[name].weight)
    set_training_mode(training.networks, phases=training.phases)
    followed = {name: value.clone() for name, value in average.state().items()}
    for step in range(2):
        before = {name: layers(generator)[name].weight.detach().clone() for name in trained}
        take_step(training, images_seen=4 * step, ranks=_RANKS)
        for name in trained:
            weight = layers(generator)[name].weight
            assert weight.detach().ne(before[name]).any(), name
            assert_unit(weight)
        for name, value in followed.items():
            value.lerp_(generator.get_parameter(name).detach(), 1 - 0.5 ** (4 / 40))
            torch.testing.assert_close(average.state()[name], value)
    for name, weight in frozen.items():
        assert torch.equal(layers(generator)[name].weight, weight), name
    assert not any(parameter.isnan().any() for parameter in generator.parameters())


def test_a_resumed_training_ends_bitwise_as_one_without_a_stop(tmp_path):
    changes = {"images": 24, "snapshot_every": 24}
    whole, first, second = (training_of("digits_d2o_f", **changes) for _ in range(3))
    options = {"ranks": _RANKS, "state_seconds": math.inf, "code": ""}
    assert train(whole, folder=tmp_path / "whole", **options) is not None
    calls = iter([False, False, True])
    assert train(first, folder=tmp_path / "stopped", stop=lambda: next(calls), **options) is None
    with torch.no_grad():
        for parameter in second.networks["generator"].parameters():
            parameter.add_(parameter.requires_grad)  # what the state must replace
    assert train(second, folder=tmp_path / "stopped", **options) is not None
    name = "snapshots/24.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for role, network in whole.networks.items():
        for key, tensor in network.state_dict().items():
            assert torch.equal(second.networks[role].state_dict()[key], tensor), (role, key)


@pytest.mark.parametrize("unit", [True, False])
def test_other_networks_have_nothing_to_settle(unit):
    config = {"name": "edm2", **_EDM2, "img_resolution": 16, "img_channels": 1} if unit else tiny_network()
    network = build_denoiser(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    settle_after_steps(network, optimizer)
    changed = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])]
    assert bool(changed) == unit
    assert all(name.endswith(".weight") for name in changed)


def test_recomputed_activations_give_the_same_gradients():
    network = build_denoiser({"name": "edm2", **_EDM2, "img_resolution": 16, "img_channels": 1, "dropout": 0.3})
    network.train()
    with torch.no_grad():
        network.model.out_gain.fill_(1.0)
    gradients = []
    for recompute in (False, True):
        for part in network.modules():
            if hasattr(part, "recompute"):
                part.recompute = recompute
        torch.manual_seed(1)
        network.zero_grad()
        network(torch.ones(2, 1, 16, 16), 1.0).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())
