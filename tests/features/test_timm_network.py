"""Features of any network of timm: the layer below its logits, of normalised images, from files of two layouts."""

from __future__ import annotations

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from onestep.features.timm_network import TimmFeatures

_SMALL, _LITE = "test_efficientnet.r160_in1k", "tf_efficientnet_lite0.in1k"


def _network(name):
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False).eval().requires_grad_(False)


def _pixels(rows, side=32):
    return torch.randint(256, (rows, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _prepared(pixels, *, size, about):
    found = []
    for each in pixels:
        picture = Image.fromarray(each.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
        rows = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(size, size, 3)
        found.append(rows.permute(2, 0, 1).float() / 255)
    mean, std = (torch.tensor(about[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    return (torch.stack(found) - mean) / std


def test_features_are_those_below_the_logits_of_images_as_timm_normalises_them(tmp_path):
    network, pixels = _network(_SMALL), _pixels(11)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    found = TimmFeatures(weights=tmp_path / "model.safetensors", network=_SMALL, size=64)(pixels)
    images = _prepared(pixels, size=64, about=network.pretrained_cfg)
    expected = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)
    assert found.probabilities is None
    torch.testing.assert_close(network.get_classifier()(found.features), network(images), rtol=1e-3, atol=1e-4)


def test_a_file_in_timms_order_under_other_names_has_the_same_features(tmp_path):
    network, pixels = _network(_LITE), _pixels(2)
    state = network.state_dict()
    save_file(state, tmp_path / "own.safetensors")
    torch.save(
        {f"other.{n}.{name.rpartition('.')[2]}": t for n, (name, t) in enumerate(state.items())}, tmp_path / "o.pth"
    )
    own, other = (
        TimmFeatures(weights=tmp_path / file, network=_LITE, size=64)(pixels).features
        for file in ("own.safetensors", "o.pth")
    )
    assert torch.equal(own, other) and own.shape == (2, 1280)


def test_other_weights_and_unknown_networks_are_refused_with_the_file(tmp_path):
    save_file(_network(_SMALL).state_dict(), tmp_path / "model.safetensors")
    for name in (_LITE, "resnet18"):
        with pytest.raises(ValueError, match="model.safetensors"):
            TimmFeatures(weights=tmp_path / "model.safetensors", network=name)
    with pytest.raises(ValueError, match="no_such_network"):
        TimmFeatures(weights=tmp_path / "model.safetensors", network="no_such_network")
