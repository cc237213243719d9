"""Features of float images: near those of the metrics' path, with a gradient, each of its own image alone."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from onestep.checkpoints.snapshot import write_snapshot
from onestep.classifiers import build_classifier
from onestep.features._float_images import classifier_features, inception_features, resized, timm_features
from onestep.features._networks import run_in_parts
from onestep.features.classifier import ClassifierFeatures
from onestep.features.inception import InceptionNetwork, prepared

_CONVNET = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 10, "width": 4}


def _pixels(channels, *, size=16, count=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def _float(pixels):
    return pixels.float() / 127.5 - 1


def _assert_close(found, wanted):
    assert found.shape == wanted.shape and found.dtype == torch.float32
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_classifier_s_are_those_of_the_metrics(tmp_path):
    torch.manual_seed(0)
    network = build_classifier(_CONVNET)
    write_snapshot(tmp_path / "classifier.safetensors", network.state_dict(), _CONVNET)
    wanted = ClassifierFeatures(weights=tmp_path / "classifier.safetensors")(_pixels(1)).features
    _assert_close(classifier_features(network, channels=1)(_float(_pixels(1))), wanted)


def test_inception_s_are_those_of_the_metrics():
    network = InceptionNetwork().to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for each in network.parameters():
        each.detach().copy_(torch.randn(each.shape, generator=generator) / max(each[0].numel(), 1) ** 0.5)
    pixels = _pixels(3, count=1)
    wanted = run_in_parts(network.pool, pixels, prepare=prepared, precision="float32")
    images = _float(pixels).requires_grad_()
    found = inception_features(network)(images)
    _assert_close(found.detach(), wanted)
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_those_of_timm_are_its_pooled_layer_of_resized_and_normalised_images(name):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    config, images = model.pretrained_cfg, _float(_pixels(3))
    size = config["input_size"][1:]
    shown = F.interpolate((images + 1) / 2, size=size, mode="bicubic", antialias=True, align_corners=False)
    mean, std = (torch.tensor(config[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features((shown - mean) / std), pre_logits=True)
    network = timm_features(model)
    found = network(images.requires_grad_())
    _assert_close(found.detach(), wanted)
    (gradient,) = torch.autograd.grad((found[0] * torch.arange(found.shape[1])).sum(), images)
    assert gradient[0].any() and not gradient[1:].any()
    assert not any(each.requires_grad for each in network.parameters())


def test_a_network_of_timm_gets_images_of_the_given_resolution():
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", pretrained=False).eval()
    config, images = model.pretrained_cfg, _float(_pixels(3))
    mean, std = (torch.tensor(config[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    for resolution in (16, 48):
        shown = F.interpolate(images, size=(resolution,) * 2, mode="bicubic", antialias=True, align_corners=False)
        with torch.no_grad():
            wanted = model.forward_head(model.forward_features(((shown + 1) / 2 - mean) / std), pre_logits=True)
        _assert_close(timm_features(model, resolution=resolution)(images).detach(), wanted)


def test_a_network_of_timm_for_images_of_one_size_refuses_another():
    model = timm.create_model("test_vit", pretrained=False)
    own = model.pretrained_cfg["input_size"][-1]
    assert timm_features(model, resolution=own)(_float(_pixels(3))).shape[0] == 3
    with pytest.raises(ValueError, match=rf"resolution: got 64, expected {own}"):
        timm_features(model, resolution=64)


@pytest.mark.parametrize(("before", "after"), [((16, 16), (40, 40)), ((64, 48), (24, 24))])
def test_the_resize_is_torch_s_antialiased_bicubic_one(before, after):
    images = torch.randn(2, 3, *before, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(images, size=after, mode="bicubic", antialias=True, align_corners=False)
    _assert_close(resized(images, size=after), wanted)


def test_grey_images_are_repeated_and_other_channels_refused():
    network = classifier_features(build_classifier({**_CONVNET, "channels": 3}), channels=3)
    grey = _float(_pixels(1))
    assert torch.equal(network(grey), network(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="channels"):
        network(torch.zeros(1, 2, 16, 16))
