"""The config and the weights that a generator takes from its teacher."""

from __future__ import annotations

import pytest
import torch

from onestep.networks import build_denoiser, one_step_config, teacher_weights_for

_TEACHER = {
    "model_type": "SongUNet",
    "img_resolution": 8,
    "img_channels": 1,
    "augment_dim": 9,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.13,
}


@pytest.fixture
def teacher():
    return build_denoiser(_TEACHER).state_dict()


@pytest.fixture
def generator():
    return build_denoiser(one_step_config(_TEACHER, preconditioning="d2o", dropout=0.0))


def test_the_generators_config_is_the_teachers_without_augmentation():
    config = one_step_config(_TEACHER, preconditioning="d2o", dropout=0.1)
    assert config == _TEACHER | {"augment_dim": 0, "dropout": 0.1, "preconditioning": "d2o"}
    assert _TEACHER["augment_dim"] == 9


def test_the_generators_config_has_one_order_whatever_the_teacher_lists():
    teacher = {key: value for key, value in _TEACHER.items() if key not in ("augment_dim", "dropout")}
    config = one_step_config(teacher, preconditioning="d2o", dropout=0.0)
    assert list(config) == [*teacher, "augment_dim", "dropout", "preconditioning"]


def test_no_dropout_in_the_run_keeps_the_teachers():
    assert one_step_config(_TEACHER, preconditioning="d2o", dropout=None)["dropout"] == 0.13


def test_all_weights_come_over_but_the_augmentations(teacher, generator):
    weights = teacher_weights_for(generator, teacher)
    assert teacher.keys() - weights.keys() == {"model.map_augment.weight"}
    generator.load_state_dict(weights, strict=True)
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in generator.state_dict().items())


def test_an_augmented_generator_keeps_that_weight_too(teacher):
    weights = teacher_weights_for(build_denoiser(_TEACHER), teacher)
    assert weights.keys() == teacher.keys()


def _missing(state):
    return {name: tensor for name, tensor in state.items() if name != "model.map_layer0.bias"}


def _another(state):
    return state | {"model.extra.weight": torch.zeros(2)}


def _other_shape(state):
    return state | {"model.map_layer0.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_missing, r"model.map_layer0.bias: network \[32\], teacher has none"),
        (_another, r"model.extra.weight: network has none, teacher \[2\]"),
        (_other_shape, r"model.map_layer0.bias: network \[32\], teacher \[3\]"),
    ],
)
def test_any_other_difference_is_refused(teacher, generator, spoil, message):
    with pytest.raises(ValueError, match=message):
        teacher_weights_for(generator, spoil(teacher))


def test_many_differences_are_counted(teacher, generator):
    with pytest.raises(ValueError, match="and [0-9]+ more"):
        teacher_weights_for(generator, {name: torch.zeros(1) for name in teacher})
