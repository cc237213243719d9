"""Activations computed again in the backward pass: the same gradients, states of generators and files, to the bit."""

from __future__ import annotations

import pytest
import torch

from onestep.bench.option_sets import option_set
from onestep.bench.random_run import random_training, random_wrapped, shape_of
from onestep.classifiers import build_classifier
from onestep.config import parse_experiment
from onestep.discriminators.stylegan2 import StyleGan2
from onestep.distributed import Ranks
from onestep.features._float_images import classifier_features
from onestep.networks import build_denoiser
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


SIZE = {"img_resolution": 16, "img_channels": 1, "label_dim": 3, "dropout": 0.3}
NETWORKS = {
    "song_unet": {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]},
    "dhariwal_unet": {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]},
    "edm2": {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]},
    "unet2d": {
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
    },
}


def _gradients(network, call):
    """Return gradients and the bytes of what the backward pass keeps, without and with recomputation."""
    found = []
    for recompute in (False, True):
        able = [part for part in network.modules() if hasattr(part, "recompute")]
        for part in able:
            part.recompute = recompute
        held: dict[int, int] = {}

        def keep(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        network.zero_grad()
        images = torch.ones(2, 1, 16, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = call(network, images).square().sum()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        found.append((gradients | {"images": images.grad}, sum(held.values())))
    assert able
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_recomputes_its_blocks(name):
    torch.manual_seed(0)
    network = build_denoiser({"name": name, **SIZE, **NETWORKS[name]}).train()
    with torch.no_grad():  # otherwise the last layer of each block is almost zero
        for parameter in network.parameters():
            parameter.add_(0.1)
    condition = torch.eye(3)[:2]
    (plain, held), (again, fewer) = _gradients(network, lambda network, images: network(images, 1.0, condition))
    assert plain.keys() == again.keys()
    assert all(torch.equal(again[key], gradient) for key, gradient in plain.items())
    assert fewer < 0.7 * held


def test_a_discriminator_without_backbone_and_features_of_losses_do_so_too():
    convnet = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 3, "width": 8}
    torch.manual_seed(0)
    discriminator = StyleGan2(channel_base=128, channel_max=8, img_resolution=16, img_channels=1, seed=0)
    for network in (discriminator, classifier_features(build_classifier(convnet), channels=1)):
        (plain, held), (again, fewer) = _gradients(network, lambda network, images: network(images))
        assert plain.keys() == again.keys()
        assert all(torch.equal(again[key], gradient) for key, gradient in plain.items())
        assert fewer < held


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
