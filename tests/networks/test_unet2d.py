"""Network `unet2d` as part of the pipeline: freeze levels, blocks, classes, memory, ratio networks, refusals."""

from __future__ import annotations

import fnmatch

import pytest
import torch

from onestep.networks import build_denoiser, frozen_parameters, one_step_config
from onestep.networks._laws import ddpm_sigmas
from onestep.ratios import build_ratio
from onestep.training.recompute import recompute_activations
from unet2d_folders import SMALL, network_config, small_unet2d

CONFIG = network_config(SMALL)


def test_each_level_freezes_some_and_both_halves_are_the_blocks():
    network = small_unet2d()
    names = [name for name, _ in network.named_parameters()]
    frozen = {level: set(frozen_parameters(network, [level])) for level in network.freeze_levels}
    assert all(frozen.values()) and not frozen["conv"] & frozen["skip"]
    assert frozen["encoder"] | frozen["decoder"] == {name for name in names if "_block" in name}
    trained = set(names) - frozen["all_but_norms"]
    assert all("norm" in name or "time_emb_proj" in name for name in trained) and "model.conv_norm_out.bias" in trained


def test_the_blocks_that_studies_observe():
    modules = dict(small_unet2d().named_modules())
    found = [
        name
        for pattern, layer in small_unet2d().model.block_layers.values()
        for name in fnmatch.filter(modules, pattern)
        if f"{name}.{layer}" in modules
    ]
    residual = [name.removesuffix(".conv2") for name in modules if name.endswith(".conv2")]
    assert sorted(found) == sorted(residual)


def test_classes_reach_the_images_and_none_is_no_class():
    network, x = small_unet2d(num_class_embeds=3), torch.randn(2, 1, 16, 16)
    classes = torch.eye(3)[:2]
    with torch.no_grad():
        one, other = network(x, torch.full((2,), 2.5), classes), network(x, torch.full((2,), 2.5), classes.flip(0))
        none = network(x, torch.full((2,), 2.5))
    assert (one - other).abs().max() > 0 and (one - none).abs().max() > 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_computed_again_give_the_same_gradients(dropout):
    gradients = []
    for again in (False, True):
        network = small_unet2d(dropout=dropout).train()
        if again:
            recompute_activations({"generator": network})
        torch.manual_seed(7)
        network(torch.randn(2, 1, 16, 16), torch.tensor([2.5, 80.0])).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(map(torch.equal, *gradients))


def test_one_level_of_all_images_is_embedded_once_and_gives_the_same():
    network, x = small_unet2d(), torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        each, once = network(x, torch.full((3,), 2.5)), network(x, torch.tensor([2.5]).expand(3))
    assert torch.allclose(each, once, atol=1e-4)


def test_a_generator_keeps_the_law_of_its_teacher():
    assert one_step_config(CONFIG, preconditioning="ddpm", dropout=0.2) == {**CONFIG, "dropout": 0.2}
    for law in ("edm", "d2o", "flow"):
        with pytest.raises(ValueError, match=f"^preconditioning: .*'{law}'.*ddpm"):
            one_step_config(CONFIG, preconditioning=law, dropout=0.0)


def test_a_ratio_network_has_its_way_down_and_the_times_of_its_law():
    denoiser = small_unet2d()
    ratio = build_ratio({"name": "ratio_unet", "network": CONFIG}, teacher=denoiser.state_dict())
    seen = []
    ratio.model.time_embedding.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    denoiser.model.time_embedding.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x, sigma = torch.randn(2, 1, 16, 16), ddpm_sigmas()[[3, 700]].float()
    with torch.no_grad():
        assert ratio(x, sigma).shape == (2,)
        denoiser(x, sigma)
    assert torch.equal(*seen)
    assert not hasattr(ratio.model, "up_blocks")


@pytest.mark.parametrize("law", ["edm", "flow"])
def test_other_laws_around_it_give_finite_images(law):
    network = build_denoiser({**CONFIG, "preconditioning": law})
    assert network(torch.randn(2, 1, 16, 16) * 80, torch.tensor([80.0, 0.1])).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"img_resolution": 15}, "block_out_channels"),
        ({"down_block_types": ["DownBlock2D"]}, "down_block_types"),
        ({"norm_num_groups": 3}, "norm_num_groups"),
        ({"attention_head_dim": 5}, "attention_head_dim"),
        ({"block_out_channels": [2, 16], "norm_num_groups": 1}, "block_out_channels"),
        ({"kernel": 3}, "kernel"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        build_denoiser({**CONFIG, **changes})


def test_heads_of_a_width():
    whole, halves = small_unet2d(), small_unet2d(attention_head_dim=8)
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert (whole(x, torch.tensor([2.5])) - halves(x, torch.tensor([2.5]))).abs().max() > 0
