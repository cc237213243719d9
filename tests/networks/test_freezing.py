"""Freeze levels: EDM's against the rule of the releases before, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from onestep.networks import build_denoiser, frozen_parameters, published_architecture
from recorded_networks import recordings

_LEVELS = ("conv", "proj", "qkv", "skip")
_PUBLISHED = (
    *(f"edm-{data}-{kind}" for data in ("cifar10-32x32-uncond", "cifar10-32x32-cond") for kind in ("vp", "ve")),
    *(f"edm-{data}-64x64-uncond-{kind}" for data in ("ffhq", "afhqv2") for kind in ("vp", "ve")),
    "edm-imagenet-64x64-cond-adm",
)
_SMALL = {
    "img_resolution": 8,
    "img_channels": 1,
    "model_channels": 64,
    "channel_mult": [1, 1],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "label_dim": 3,
    "augment_dim": 9,
}


def _shell(config):
    with torch.device("meta"):
        return build_denoiser(config)


def _by_substrings(network, levels):
    """The rule before freeze levels: names inside a U-Net block that contain one of `levels`, all as substrings."""
    names = [name for name, _ in network.named_parameters()]
    inside = [name for name in names if any(part in name for part in ("block", "up", "down", "in"))]
    return [name for name in inside if any(level in name for level in levels)]


def _assert_as_before(network):
    for count in (0, 2, 3, 4):
        assert frozen_parameters(network, _LEVELS[:count]) == _by_substrings(network, _LEVELS[:count])


@pytest.mark.parametrize("name", _PUBLISHED)
def test_published_networks_freeze_what_they_froze_before(name):
    _assert_as_before(_shell(published_architecture(name)))


@pytest.mark.parametrize("name", recordings("arch_*.json"))
def test_recorded_networks_freeze_what_they_froze_before(golden, name):
    _assert_as_before(_shell(golden.json(f"{name}.json")["constructor_kwargs"]))


@pytest.mark.parametrize("options", [{}, {"encoder_type": "residual", "embedding_type": "fourier"}])
@pytest.mark.parametrize("name", ["song_unet", "dhariwal_unet"])
def test_small_networks_freeze_what_they_froze_before(name, options):
    if name == "song_unet" or not options:
        _assert_as_before(_shell({"name": name, **_SMALL, **options}))


def test_each_level_alone_is_its_kind_of_layer():
    network = _shell({"name": "song_unet", **_SMALL})
    for level in _LEVELS:
        leaves = {name.split(".")[-2].rstrip("01") for name in frozen_parameters(network, [level])}
        assert leaves == {level}


def test_patterns_match_whole_names():
    network = _shell({"name": "song_unet", **_SMALL})
    assert frozen_parameters(network, ["model.map_layer?.weight"]) == [
        "model.map_layer0.weight",
        "model.map_layer1.weight",
    ]
    assert frozen_parameters(network, ["*"]) == [name for name, _ in network.named_parameters()]


@pytest.mark.parametrize("level", ["norm", "map_layer0", "Conv", "model.*.conv7.*", ""])
def test_a_level_or_pattern_without_parameters_is_refused_with_the_levels(level):
    with pytest.raises(ValueError, match="^freeze: ") as refusal:
        frozen_parameters(_shell({"name": "song_unet", **_SMALL}), ["conv", level])
    assert repr(level) in str(refusal.value) and ", ".join(_LEVELS) in str(refusal.value)


def test_a_level_that_this_network_has_no_layers_for_is_refused():
    narrow = _shell({"name": "dhariwal_unet", **_SMALL, "model_channels": 32})  # below one attention head
    with pytest.raises(ValueError, match="^freeze: .*'proj'"):
        frozen_parameters(narrow, ["conv", "proj"])


def test_levels_are_readable_without_torch():
    """As literals in the class, which a login node reads from the source."""
    import ast
    import inspect

    from onestep import networks

    for name in ("song_unet", "dhariwal_unet"):
        network = _shell({"name": name, **_SMALL})
        source = inspect.getsource(__import__(f"{networks.__name__}.{name}", fromlist=["_"]))
        (levels,) = (
            node.value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == "freeze_levels"
        )
        assert ast.literal_eval(levels) == dict(network.freeze_levels) and json.dumps(ast.literal_eval(levels))


_NORMS = ("norm", "affine")


@pytest.mark.parametrize("name", ["song_unet", "dhariwal_unet"])
def test_levels_of_the_studies_are_parts_of_the_network(name):
    network = _shell({"name": name, **_SMALL})
    names = [each for each, _ in network.named_parameters()]
    for part, level in (("enc", "encoder"), ("dec", "decoder")):
        assert frozen_parameters(network, [level]) == [each for each in names if each.startswith(f"model.{part}.")]
    trained = set(names) - set(frozen_parameters(network, ["all_but_norms"]))
    assert trained and trained == {each for each in names if any(part in each.split(".")[-2] for part in _NORMS)}
    assert set(frozen_parameters(network, ["all_but_norms", "model.*.norm0.*"])) > set(names) - trained


def test_what_a_pattern_of_a_run_marks_as_trained_is_refused():
    with pytest.raises(ValueError, match="^freeze: "):
        frozen_parameters(_shell({"name": "song_unet", **_SMALL}), ["conv", "!model.*norm*.*"])


@pytest.mark.parametrize("levels", [("conv", "proj"), ("qkv",), ("encoder",)])
def test_as_many_parameters_of_random_tensors_are_frozen_by_a_seed(levels):
    network = _shell({"name": "song_unet", **_SMALL})
    sizes = {name: each.numel() for name, each in network.named_parameters()}
    most = sum(sizes[name] for name in frozen_parameters(network, levels))
    drawn = [frozen_parameters(network, levels, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for names in drawn:
        assert names == [name for name in sizes if name in names]
        left = min(size for name, size in sizes.items() if name not in names)
        assert most - left < sum(sizes[name] for name in names) <= most
