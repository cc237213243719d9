"""The ratio network of a U-Net: its encoder, its embedding, its head, its weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onestep.networks import build_denoiser
from onestep.ratios import build_ratio
from tiny import tiny_network

ADM = {"model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1}
SHAPES = {
    "song": tiny_network(channel_mult=[1, 2], attn_resolutions=[8], encoder_type="residual", dropout=0.1),
    "adm": {**ADM, "img_resolution": 16, "img_channels": 3, "label_dim": 3, "attn_resolutions": [8]},
}


def _network(name, **changes):
    return SHAPES[name] | changes


def _inputs(network, rows=4):
    torch.manual_seed(3)
    size, classes = network["img_resolution"], network["label_dim"]
    condition = torch.eye(classes)[torch.arange(rows) % classes] if classes else None
    return torch.randn(rows, network["img_channels"], size, size), torch.rand(rows) + 0.1, condition


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_is_one_number_of_its_image_level_and_class(name):
    torch.manual_seed(0)
    network = _network(name)
    ratio = build_ratio({"name": "ratio_unet", "network": network}).eval()
    # The last layer of each block is zero at the start: the embedding reaches nothing yet.
    nn.init.normal_(next(p for n, p in ratio.named_parameters() if n.endswith("block0.conv1.weight")), std=0.1)
    x, sigma, condition = _inputs(network)
    found = ratio(x, sigma, condition)
    assert found.shape == (4,) and found.dtype == torch.float32
    alone = ratio(x[2:3], sigma[2:3], None if condition is None else condition[2:3])
    torch.testing.assert_close(alone[0], found[2])
    assert not torch.allclose(ratio(x, sigma * 2, condition), found)
    if condition is not None:
        assert not torch.allclose(ratio(x, sigma, condition.roll(1, dims=0)), found)
        assert ratio(x, sigma).shape == (4,)
        with pytest.raises(ValueError, match="condition"):
            ratio(x, sigma, torch.eye(2)[[0, 0, 1, 1]])


@pytest.mark.parametrize("name", SHAPES)
def test_the_encoder_is_the_teacher_s_and_nothing_of_its_decoder_is_left(name):
    network = _network(name)
    teacher = build_denoiser({**network, "augment_dim": 9})
    weights = teacher.state_dict()
    ratio = build_ratio({"name": "ratio_unet", "weights": "teacher", "network": network}, teacher=weights)
    own = {key: value for key, value in ratio.state_dict().items() if key.startswith("model.")}
    assert own and all(torch.equal(value, weights[key]) for key, value in own.items())
    assert {key.split(".")[1] for key in own} == {
        key.split(".")[1] for key in weights if not key.startswith(("model.dec", "model.out_", "model.map_augment"))
    }
    x, sigma, condition = _inputs(network)
    # The map that the head takes is the one that the teacher's decoder begins with.
    seen = []
    first = next(iter(teacher.model.dec.values()))
    first.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    teacher.eval()(x, sigma, condition)
    heard = []
    ratio.eval().head.register_forward_pre_hook(lambda module, given: heard.append(given[0]))
    ratio(x, sigma, condition)
    torch.testing.assert_close(heard[0], seen[0])
    random = build_ratio({"name": "ratio_unet", "weights": "random", "network": network}, teacher=weights)
    assert not torch.equal(random.state_dict()["model.map_layer0.weight"], weights["model.map_layer0.weight"])


@pytest.mark.parametrize(
    ("resolution", "levels", "kernels"),
    [(32, 3, [4, 4, 1]), (16, 2, [4, 4, 1]), (16, 3, [4, 1]), (16, 4, [2, 1]), (12, 2, [4, 1]), (4, 3, [1, 1])],
)
def test_the_head_fits_maps_of_any_size(resolution, levels, kernels):
    network = _network("song", img_resolution=resolution, channel_mult=[1] * levels, attn_resolutions=[])
    ratio = build_ratio({"name": "ratio_unet", "network": network})
    convolutions = [layer for layer in ratio.head if isinstance(layer, nn.Conv2d)]
    assert [each.kernel_size[0] for each in convolutions] == kernels
    assert [each.stride[0] for each in convolutions[:-1]] == ([2, 4] if len(kernels) == 3 else [kernels[0]])
    x, sigma, _ = _inputs(network)
    assert ratio(x, sigma).shape == (4,)


def test_larger_maps_end_in_the_mean_of_several_numbers():
    network = _network("song", img_resolution=32)
    ratio = build_ratio({"name": "ratio_unet", "network": network})
    x, sigma, _ = _inputs(network)
    seen = []
    ratio.head.register_forward_hook(lambda module, given, out: seen.append(out))
    found = ratio(x, sigma)
    assert seen[0].shape == (4, 1, 2, 2)
    torch.testing.assert_close(found, seen[0].mean(dim=(1, 2, 3)))


def test_in_bfloat16_its_result_is_float32_and_near_and_the_network_itself_stays_float32():
    torch.manual_seed(0)
    network = _network("song")
    ratio = build_ratio({"name": "ratio_unet", "network": network}).eval()
    x, sigma, _ = _inputs(network)
    plain, half = (ratio.execution_view(bfloat16=each, compiled=lambda f: f) for each in (False, True))
    exact = ratio(x, sigma)
    assert torch.equal(plain(x, sigma), exact)
    rounded = half(x, sigma)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.02)
    assert torch.equal(ratio(x, sigma), exact)


class Flat(nn.Module):
    """A network without an encoder."""

    def __init__(self, *, img_resolution, img_channels, label_dim=0):
        super().__init__()
        self.layer = nn.Conv2d(img_channels, img_channels, 1)

    def forward(self, x, noise, condition=None):
        return self.layer(x)


class Plain(nn.Module):
    """A ratio network from outside that takes the shape of the images alone."""

    def __init__(self, *, img_channels: int, label_dim: int, width: int = 4):
        super().__init__()
        self.layer = nn.Linear(img_channels + label_dim, width)

    def forward(self, x, sigma, condition=None):
        return self.layer(x.mean(dim=(2, 3))).sum(dim=1)


def test_ratio_networks_from_outside_get_what_they_take():
    name = f"{__name__}:Plain"
    ratio = build_ratio({"name": name, "width": 2, "network": _network("adm")})
    assert ratio.layer.weight.shape == (2, 6)


def test_what_does_not_fit_is_one_line():
    flat = {"name": f"{__name__}:Flat", "img_resolution": 16, "img_channels": 1}
    with pytest.raises(ValueError, match="ratio_unet: got the network Flat") as error:
        build_ratio({"name": "ratio_unet", "network": flat})
    assert "\n" not in str(error.value)
    weights = build_denoiser(_network("song", model_channels=32)).state_dict()
    with pytest.raises(ValueError, match="teacher: got ") as error:
        build_ratio({"name": "ratio_unet", "network": _network("song")}, teacher=weights)
    assert "\n" not in str(error.value)
