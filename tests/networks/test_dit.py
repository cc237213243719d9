"""Network `dit` as part of the pipeline: freeze levels, blocks, classes, inner maps, memory, guidance, refusals."""

from __future__ import annotations

import fnmatch

import pytest
import torch

from dit_files import SMALL, small_dit
from onestep.discriminators.teacher_features import TeacherFeatures
from onestep.networks import build_denoiser, frozen_parameters, one_step_config
from onestep.training.recompute import recompute_activations

CLASSES = {"label_dim": 3}


def test_each_level_freezes_some_and_the_numbered_ones_are_nested():
    network = small_dit(**CLASSES)
    frozen = {level: set(frozen_parameters(network, [level])) for level in network.freeze_levels}
    assert frozen["F1"] == frozen["proj"] | frozen["mlp"] and frozen["F2"] == frozen["F1"] | frozen["qkv"]
    assert frozen["F3"] == frozen["F2"] | frozen["modulation"]
    in_blocks = {name for name, _ in network.named_parameters() if name.startswith("model.blocks.")}
    assert in_blocks - frozen["F3"] == {name for name in in_blocks if name.endswith("adaLN_modulation.1.bias")}


def test_the_blocks_that_studies_observe():
    network = small_dit()
    modules = dict(network.named_modules())
    ((pattern, layer),) = network.model.block_layers.values()
    found = [name for name in fnmatch.filter(modules, pattern) if f"{name}.{layer}" in modules]
    assert found == ["model.blocks.0", "model.blocks.1"]


@pytest.mark.parametrize("no_class", [True, False])
@torch.no_grad()
def test_classes_reach_the_images_and_none_is_no_class(no_class):
    network, x, classes = small_dit(**CLASSES, no_class=no_class), torch.randn(2, 1, 16, 16), torch.eye(3)[:2]
    level = torch.full((2,), 2.5)
    one, other, none = network(x, level, classes), network(x, level, classes.flip(0)), network(x, level)
    assert (one - other).abs().max() > 0 and (one - none).abs().max() > 0
    assert torch.allclose(none, network(x, level, torch.zeros(2, 3)), atol=1e-6)
    table = network.model.y_embedder.embedding_table.weight
    assert len(table) == 3 + no_class
    if no_class:  # its row alone matters
        table[:3] = 0
        assert torch.allclose(none, network(x, level), atol=1e-6)


def test_classes_are_left_out_in_training_alone_and_not_by_a_generator():
    config = {**SMALL, **CLASSES, "label_dropout": 0.999, "preconditioning": "flow"}
    torch.manual_seed(0)
    network, x, classes = small_dit(**CLASSES, label_dropout=0.999), torch.randn(2, 1, 16, 16), torch.eye(3)[:2]
    with torch.no_grad():
        level = torch.full((2,), 2.5)
        trained, none = network.train()(x, level, classes), network(x, level)
        assert torch.allclose(trained, none, atol=1e-6)
        assert (network.eval()(x, level, classes) - none).abs().max() > 1e-3
    assert one_step_config(config, preconditioning="flow", dropout=0.0)["label_dropout"] == 0


def test_a_generator_keeps_the_law_of_its_teacher():
    config = {**SMALL, "preconditioning": "flow"}
    assert one_step_config(config, preconditioning="flow", dropout=None) == {**config, "label_dropout": 0.0}
    for law in ("edm", "d2o", "ddpm"):
        with pytest.raises(ValueError, match=f"^preconditioning: .*'{law}'.*flow"):
            one_step_config(config, preconditioning=law, dropout=0.0)


@torch.no_grad()
def test_inner_maps_are_the_tokens_of_three_depths():
    network, x, level = small_dit(depth=4), torch.randn(2, 1, 16, 16), torch.tensor([2.5, 80.0])
    after = []
    for block in network.model.blocks:
        block.register_forward_hook(lambda _, given, result: after.append(result))
    image, maps = network(x, level, maps="beside")
    assert (
        [tuple(each.shape[1:]) for each in maps] == [(16, 4, 4)] * 3 == [(c, s, s) for c, s in network.model.map_shapes]
    )
    for found, tokens in zip(maps, (after[1], after[2], after[3]), strict=True):
        assert torch.equal(found.flatten(2).transpose(1, 2), tokens)
    assert torch.equal(image, network(x, level))
    assert all(map(torch.equal, maps, network(x, level, maps="only")))


def test_activations_computed_again_give_the_same_gradients():
    gradients = []
    for again in (False, True):
        network = small_dit().train()
        if again:
            recompute_activations({"generator": network})
        torch.manual_seed(7)
        network(torch.randn(2, 1, 16, 16), torch.tensor([2.5, 80.0])).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_penalty_on_its_tokens_is_the_same_with_activations_computed_again():
    """Its second derivative needs another kernel of attention than the first pass would take alone."""
    found = []
    for again in (False, True):
        teacher = small_dit(depth=4).requires_grad_(False)
        heads = TeacherFeatures(
            levels=(1,), grid=None, teacher=teacher, map_shapes=teacher.model.map_shapes, img_channels=1, seed=3
        )
        if again:
            recompute_activations({"discriminator": heads})
        torch.manual_seed(7)
        images = torch.randn(2, 1, 16, 16, requires_grad=True)
        (slope,) = torch.autograd.grad(heads(images).sum(), images, create_graph=True)
        slope.square().sum().backward()
        found.append(
            [slope.detach(), *(each.grad for each in heads.discriminators.parameters() if each.grad is not None)]
        )
    assert len(found[0]) > 2 and all(map(torch.equal, *found))


@torch.no_grad()
def test_one_level_of_all_images_is_embedded_once_and_gives_the_same():
    network, x = small_dit(**CLASSES), torch.randn(3, 1, 16, 16)
    seen = []
    network.model.t_embedder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    each, once = network(x, torch.full((3,), 2.5)), network(x, torch.tensor([2.5]).expand(3))
    assert torch.allclose(each, once, atol=1e-5) and seen == [3, 1]


@torch.no_grad()
def test_half_precision_is_near_and_its_result_is_in_single_precision():
    network, x, level = small_dit(**CLASSES), torch.randn(2, 1, 16, 16), torch.tensor([2.5, 80.0])
    exact = network(x, level)
    network.image_type = torch.bfloat16
    half = network(x, level)
    assert half.dtype == torch.float32 and 0 < (half - exact).abs().max() < 0.05 * exact.abs().max()


@torch.no_grad()
def test_a_fresh_network_returns_zeros_and_variances_have_no_gradient():
    torch.manual_seed(0)
    network = build_denoiser({**SMALL, **CLASSES, "preconditioning": "ddpm"})
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(network.model(x, torch.tensor([5.0]), torch.eye(3)[:2]), torch.zeros_like(x))
    std = {name: each.std() for name, each in network.named_parameters()}
    assert abs(std["model.y_embedder.embedding_table.weight"] - 0.02) < 0.006
    assert abs(std["model.t_embedder.mlp.0.weight"] - 0.02) < 0.001
    assert abs(std["model.blocks.0.mlp.fc1.weight"] - (2 / 80) ** 0.5) < 0.01
    assert abs(std["model.x_embedder.proj.weight"] - (2 / 32) ** 0.5) < 0.03

    with torch.enable_grad():
        network(x, torch.tensor([2.5]), torch.eye(3)[:2]).square().sum().backward()
    gradient = network.model.final_layer.linear.bias.grad.reshape(4, 4, 2)  # row and column of a patch, channel
    assert gradient[..., 0].abs().min() > 0 and gradient[..., 1].abs().max() == 0


@pytest.mark.parametrize("law", ["edm", "d2o"])
def test_other_laws_around_it_give_finite_images(law):
    network = small_dit(law=law)
    assert network(torch.randn(2, 1, 16, 16) * 80, torch.tensor([80.0, 0.1])).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"img_resolution": 15}, "patch_size"),
        ({"hidden_size": 18}, "hidden_size"),
        ({"num_heads": 3}, "hidden_size"),
        ({"label_dropout": 0.1}, "label_dropout"),
        ({"label_dim": 3, "no_class": False, "label_dropout": 0.1}, "label_dropout"),
        ({"mlp_ratio": 4}, "mlp_ratio"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        build_denoiser({**SMALL, **changes})
