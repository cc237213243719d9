"""Hooks on blocks: which blocks, in which order, and what is observed along a trajectory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from image_archives import write_archive
from onestep.checkpoints.snapshot import write_snapshot
from onestep.networks import Preconditioned, build_denoiser
from onestep.sampling import per_seed_noise
from onestep.sampling.heun import Heun
from onestep.studies import _hooks
from tiny import tiny_network

SMALL = {"channel_mult": [1, 2], "attn_resolutions": [8], "preconditioning": "edm"}


def network(**changes):
    torch.manual_seed(0)
    return build_denoiser(tiny_network(**SMALL, **changes)).eval()


def blocks_of(built):
    return _hooks.blocks_of(built, source="file")


def test_blocks_are_in_running_order_with_their_last_convolution():
    blocks = blocks_of(network())
    assert [block.label for block in blocks] == [
        *("enc.16x16_block0", "enc.8x8_down", "enc.8x8_block0"),
        *("dec.8x8_in0", "dec.8x8_in1", "dec.8x8_block0", "dec.8x8_block1"),
        *("dec.16x16_up", "dec.16x16_block0", "dec.16x16_block1"),
    ]
    assert [block.part for block in blocks] == ["encoder"] * 3 + ["decoder"] * 7
    assert [block.resolution for block in blocks] == [16, 8, 8, 8, 8, 8, 8, 16, 16, 16]
    assert all(block.layer == f"{block.name}.conv1" for block in blocks)


def test_the_other_unet_names_its_blocks_as_well():
    torch.manual_seed(0)
    options = {"name": "dhariwal_unet", "model_channels": 32, "num_blocks": 1, "channel_mult": [1, 2]}
    adm = build_denoiser({**options, "img_resolution": 8, "img_channels": 3, "label_dim": 2}).eval()
    assert {block.part for block in blocks_of(adm)} == {"encoder", "decoder"}


class Tokens(nn.Module):
    """A network of another kind: two blocks that run in the reverse of the order in which they are registered."""

    block_layers = {"body": ("model.steps.?", "last")}

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(nn.ModuleDict({"last": nn.Linear(3, 3)}) for _ in range(2))
        for step in self.steps:
            step.forward = step["last"].__call__

    def forward(self, x, noise, condition):
        tokens = x.flatten(2).transpose(1, 2)
        for step in reversed(self.steps):
            tokens = step(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


def wrapped(model):
    return Preconditioned(model, img_resolution=4, img_channels=3).eval()


def test_blocks_of_tokens_are_maps_in_their_running_order():
    built = wrapped(Tokens())
    blocks = blocks_of(built)
    assert [(block.name, block.part, block.resolution) for block in blocks] == [
        ("model.steps.1", "body", 4),
        ("model.steps.0", "body", 4),
    ]
    maps = {}

    def see(kind, index, value):
        if kind == "output":
            maps[index] = _hooks.as_map(value)

    denoised = _hooks.observed(built, blocks, torch.randn(2, 3, 4, 4), 1.0, None, see=see)
    assert maps[1].shape == denoised.shape


@pytest.mark.parametrize("layers", [None, {"body": ("model.absent.*", "last")}])
def test_a_network_that_names_no_blocks_is_refused_by_name(layers):
    class Unnamed(Tokens):
        block_layers = layers

    with pytest.raises(ValueError, match="^some.file: network: got Unnamed.*block_layers"):
        _hooks.blocks_of(wrapped(Unnamed()), source="some.file")


def test_a_trajectory_is_that_of_the_sampler_and_is_observed_at_each_first_evaluation():
    built, seeds = network(), range(5)
    blocks, sampler = blocks_of(built), Heun(steps=4)
    seen, denoised = [], {}

    def see(step, kind, index, value):
        seen.append((step, kind, index))
        if kind == "denoised":
            denoised.setdefault(step, []).append(value.double())

    levels = _hooks.trajectory(built, blocks, sampler=sampler, seeds=seeds, batch=2, see=see)
    assert levels[0] == pytest.approx(80) and levels[-1] == pytest.approx(0.002) and len(levels) == 4
    # An input, a layer and an output a block, and the result: of each step of each of three batches.
    assert len(seen) == 3 * 4 * (2 * len(blocks) + 2)
    # The last step is an Euler step to 0, so the last denoised images are the sampler's.
    images = sampler(built, per_seed_noise(seeds, (1, 16, 16)), None)
    torch.testing.assert_close(torch.cat(denoised[3]), images, rtol=0, atol=1e-5)
    assert not built.model.enc["16x16_block0"].conv1._forward_hooks


def test_noised_images_are_seen_at_each_level_with_their_classes():
    built = network(label_dim=3)
    with torch.no_grad():
        built.model.map_label.weight.mul_(100)
    blocks, given, found = blocks_of(built), {}, {}

    def see(step, kind, index, value):
        if index == -1:
            (given if kind == "input" else found).setdefault(step, []).append(value)

    images, classes = torch.rand(3, 1, 16, 16), torch.eye(3)
    options = {"levels": [2.0, 0.1], "seeds": range(3), "batch": 2, "images": images, "condition": classes}
    _hooks.at_levels(built, blocks, see=see, **options)
    noise = per_seed_noise(range(3), (1, 16, 16))
    for step, level in enumerate([2.0, 0.1]):
        noisy = images + level * noise
        torch.testing.assert_close(torch.cat(given[step]), noisy / (level**2 + 0.25) ** 0.5)
        wanted = built(noisy, torch.full((3,), level), classes).detach()
        torch.testing.assert_close(torch.cat(found[step]), wanted, rtol=0, atol=1e-5)


def test_an_untrained_network_has_the_shape_of_the_file_and_no_silent_layer(tmp_path):
    options = {"name": "dhariwal_unet", "model_channels": 32, "num_blocks": 1, "channel_mult": [1], "dropout": 0.0}
    config = {**options, "img_resolution": 8, "img_channels": 3, "attn_resolutions": []}
    built = build_denoiser(config)
    write_snapshot(tmp_path / "teacher.safetensors", built.state_dict(), config)
    before = torch.get_rng_state()
    one, two, other = (_hooks.untrained(tmp_path / "teacher.safetensors", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    assert not torch.equal(one.model.out_conv.weight, other.model.out_conv.weight)
    assert all(each.any() for each in one.parameters() if each.ndim > 1)
    assert not built.model.out_conv.weight.any(), "the case: a layer that starts with zeros"
    assert one.model.out_conv.weight.std().item() == pytest.approx((32 * 9) ** -0.5, rel=0.1)


def test_real_images_are_spread_over_the_dataset_and_fit_the_network(tmp_path):
    pixels = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 16, 16), dtype=np.uint8)
    archive = tmp_path / "data.zip"
    write_archive(archive, [(image, index % 3) for index, image in enumerate(pixels)])
    built = network(label_dim=3)
    images, condition = _hooks.real_images(archive, built, count=4)
    assert ((images[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [0, 2, 5, 7]
    assert condition.argmax(dim=1).tolist() == [0, 2, 2, 1]
    assert _hooks.real_images(archive, network(), count=4)[1] is None
    with pytest.raises(ValueError, match="seeds: got 11"):
        _hooks.real_images(archive, built, count=11)
    with pytest.raises(ValueError, match=r"data\.zip.*network"):
        _hooks.real_images(archive, network(img_resolution=32), count=4)
