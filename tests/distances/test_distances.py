"""Distances between images: recordings, closed forms, and what all of them share."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from onestep import components
from onestep.classifiers import build_classifier
from onestep.discriminators._backbones import classifier_backbone, timm_backbone
from onestep.distances.features import FeatureDistance
from onestep.distances.lpips import Lpips
from onestep.training.sources import NamedTensors
from recorded_studies import assert_close, constants, studies_of, tensors, tolerance

_FILE = "lpips.npz"
_VGG = "vgg16.tv_in1k"


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    classifier = build_classifier({"name": "convnet", "resolution": 16, "channels": 1, "classes": 3, "width": 8})
    return classifier_backbone(classifier, channels=1)


def _options(name):
    return {"features": {"backbone": "digits"}, "lpips": {"trunk": "vgg", "linear": "lpips"}}.get(name, {})


def _vgg(fill):
    """Return the trunk of LPIPS with weights of `fill(name, shape)`."""
    with torch.device("meta"):
        network = timm.create_model(_VGG, pretrained=False)
    network.pre_logits = nn.Identity()
    network.reset_classifier(0)
    network.to_empty(device="cpu")
    for name, value in network.state_dict().items():
        value.copy_(fill(name, tuple(value.shape)))
    return timm_backbone(network, name=_VGG, strides=Lpips(trunk="vgg", linear="l").networks()["distance"].strides)


@pytest.mark.golden
def test_lpips_equals_the_recordings(golden):
    recorded = studies_of(golden)
    arrays, own = recorded.load(_FILE), constants(recorded, _FILE)

    def fill(name, shape):
        return torch.from_numpy(recorded.recipe(own["salt"], name, shape))

    share = tolerance(recorded, _FILE, r"rel ([\d.e-]+\d) on distance")
    gradient_share = tolerance(recorded, _FILE, r"grads rel ([\d.e-]+\d)")
    shapes = Lpips(trunk="vgg", linear="lpips").networks()["distance_linear"].shapes
    linear = {name: fill(f"lin{place}.weight", shape).abs() for place, (name, shape) in enumerate(shapes.items())}
    networks = {"distance": _vgg(fill), "distance_linear": NamedTensors(linear)}
    for resolution in own["R"]:
        images, target = (torch.from_numpy(arrays[f"R{resolution}/{each}"]) for each in "ab")
        for size in own["size"]:
            case = tensors(arrays, f"R{resolution}/size{size}/")
            distance, moving = Lpips(trunk="vgg", linear="lpips", resolution=size), images.clone().requires_grad_()
            found = distance(moving, target, networks=networks)
            torch.testing.assert_close(found, case["distance"], rtol=share, atol=0)
            layers = torch.stack(distance.layers(images, target, networks=networks))
            torch.testing.assert_close(layers, case["per_layer"], rtol=share, atol=0)
            (gradient,) = torch.autograd.grad(found.mean(), moving)
            assert_close(gradient, case["grad_a_of_mean"], share=gradient_share, what=f"{resolution} {size}")


@pytest.mark.parametrize("name", [name for name in components.choices("distances") if name != "lpips"])
def test_a_distance_is_of_each_image_alone_and_zero_for_equal_ones(name, backbone):
    distance = components.build("distances", {"name": name, **_options(name)})
    networks = dict.fromkeys(distance.networks(), backbone)
    images, target = (0.5 * torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    moving = images.clone().requires_grad_()
    found = distance(moving, target, networks=networks)
    assert found.shape == (3,) and bool((found > 0).all())
    torch.testing.assert_close(distance(images[1:2], target[1:2], networks=networks), found[1:2].detach())
    (gradient,) = torch.autograd.grad(found.sum(), moving)
    assert bool(gradient.isfinite().all()) and bool((gradient != 0).any())
    same = target.clone().requires_grad_()
    zero = distance(same, target, networks=networks)
    (gradient,) = torch.autograd.grad(zero.sum(), same)
    assert not zero.any() and not gradient.any()
    resized = components.build("distances", {"name": name, **_options(name), "resolution": 32})
    assert resized(images, target, networks=networks).shape == (3,)


def test_distances_of_pixels_are_their_formulas():
    images, target = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 1, 4, 4)
    for name, wanted in (("l1", 0.5), ("l2", 0.25), ("pseudo_huber", (4.0 + 16 * 0.01) ** 0.5 - 0.4)):
        options = {"constant": 0.1} if name == "pseudo_huber" else {}
        distance = components.build("distances", {"name": name, **options})
        torch.testing.assert_close(distance(images, target, networks={}), torch.full((2,), wanted))


def test_a_dead_pixel_has_no_gradient_of_not_a_number():
    images = torch.zeros(1, 1, 4, 4, requires_grad=True)

    def maps(images, *, size):
        return [images.relu()]

    distance = FeatureDistance(backbone="digits")
    distance(images, torch.ones(1, 1, 4, 4), networks={"distance": maps}).sum().backward()
    assert bool(images.grad.isfinite().all())
