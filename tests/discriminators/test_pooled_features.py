"""The discriminator of pooled features: logits as recorded, what is frozen, what it refuses."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from onestep.classifiers import build_classifier
from onestep.discriminators import build_discriminator
from onestep.discriminators._backbones import Backbone, classifier_backbone, timm_backbone
from onestep.discriminators.pooled_features import PooledFeatures
from onestep.objectives import Batch
from onestep.objectives.d2o import D2O

_FILE, _CASE = "stylegan2_discriminator.npz", "pooled_head/"


def _classifier():
    torch.manual_seed(0)
    block = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 3, "width": 4}
    return classifier_backbone(build_classifier(block), channels=1)


def _pooled(**changes):
    return PooledFeatures(**({"backbones": {"eye": _classifier()}, "seed": 3} | changes))


def _images(rows=6, *, channels=1, size=16):
    return torch.rand(rows, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.golden
def test_logits_are_those_recorded(golden):
    folder = golden.folder / "studies"
    if not (folder / "manifest.json").exists():
        pytest.skip(f"{folder}: no recordings of studies")
    recorded = type(golden)(folder)
    arrays = {
        k.removeprefix(_CASE): torch.from_numpy(v) for k, v in recorded.load(_FILE).items() if k.startswith(_CASE)
    }
    weights = {key.removeprefix("sd/"): value for key, value in arrays.items() if key.startswith("sd/")}
    # LPIPS's scaling (x - shift) / scale of images in [-1, 1] is the normalisation of ImageNet's classifiers.
    mean, std = (weights["scale.shift"].flatten() + 1) / 2, weights["scale.scale"].flatten() / 2
    backbone = Backbone(
        _Taps(weights),
        channels=3,
        tap_channels=(recorded.manifest["files"][_FILE]["constants"]["feat"],),
        strides=(1,),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )
    outputs = recorded.manifest["files"][_FILE]["constants"]["out_dim"]
    discriminator = PooledFeatures(backbones={"eye": backbone}, logits=outputs, seed=0)
    head = {key: value for key, value in weights.items() if key.startswith(("fc.", "out."))}
    discriminator.discriminators["eye"].load_state_dict(head, strict=True)
    assert discriminator.splits == (outputs,)
    torch.testing.assert_close(discriminator(arrays["x"]).detach(), arrays["logits"], rtol=1e-4, atol=1e-4)


class _Taps(nn.Module):
    """The recorded features: twice a 3x3 convolution to half the size and ReLU."""

    def __init__(self, weights):
        super().__init__()
        parts = [(weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]) for place in (0, 2)]
        for index, part in enumerate(nn.Parameter(each) for pair in parts for each in pair):
            self.register_parameter(f"p{index}", part)

    def forward(self, images):
        maps = F.relu(F.conv2d(images, self.p0, self.p1, stride=2, padding=1))
        return (F.relu(F.conv2d(maps, self.p2, self.p3, stride=2, padding=1)),)


def test_the_scaling_of_vgg16_is_that_of_lpips():
    with torch.device("meta"):
        model = timm.create_model("vgg16.tv_in1k", pretrained=False)
    backbone = timm_backbone(model, name="vgg16.tv_in1k")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    torch.testing.assert_close((1 / backbone.scale).flatten(), scale)
    torch.testing.assert_close((-backbone.offset / backbone.scale).flatten(), shift)
    assert (backbone.tap_channels[-1], backbone.strides[-1]) == (512, 16)  # relu5_3, before the last pooling


def test_it_is_the_mean_of_the_last_tap_and_a_head():
    discriminator, images = _pooled(logits=3), _images()
    ((pooled,),) = discriminator.frozen_features(images)
    torch.testing.assert_close(pooled, discriminator.pretrained["eye"](images)[-1].mean(dim=(2, 3)))
    head = discriminator.discriminators["eye"]
    wanted = head.out(F.silu(head.fc(pooled)))
    torch.testing.assert_close(discriminator(images), wanted)
    torch.testing.assert_close(discriminator(images)[:2], discriminator(images[:2]))  # no image depends on another
    assert wanted.shape == (6, 3) and discriminator.splits == (3,)
    assert all(name.startswith("discriminators.") for name, _ in discriminator.named_parameters())
    assert not discriminator.train().pretrained.training


def test_images_keep_their_size_unless_it_is_given():
    kept, resized = _pooled(), _pooled(resolution=32)
    larger = F.interpolate(_images(), size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized(_images()), kept(larger))


@pytest.mark.parametrize("name", ["test_efficientnet.r160_in1k", "test_vit.r160_in1k"])
def test_both_ways_to_the_penalty_agree(name):
    torch.manual_seed(0)
    backbone = timm_backbone(timm.create_model(name, pretrained=False), name=name)
    images, found = _images(2, channels=3, size=32), []
    for gradient in ("double_backward", "forward_mode"):
        discriminator = PooledFeatures(backbones={"eye": backbone}, resolution=160, logits=2, seed=3)
        batch = Batch(images=images, condition=None, random=None, images_seen=0)
        loss = D2O(r1_gamma=10.0, r1_gradient=gradient).r1_loss({"discriminator": discriminator}, batch)
        loss.value.backward()
        found.append([loss.value.detach(), *(p.grad for p in discriminator.parameters())])
    assert float(found[0][0]) > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def test_forward_mode_is_refused_by_name_where_torch_has_none():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
    taps = lambda images: (network(images),)  # noqa: E731
    module = nn.Module()
    module.forward = taps
    backbone = Backbone(module, channels=1, tap_channels=(4,), strides=(1,), mean=(0.5,), std=(0.5,))
    discriminator = PooledFeatures(backbones={"eye": backbone}, seed=3)
    batch = Batch(images=_images(2), condition=None, random=None, images_seen=0)
    D2O().r1_loss({"discriminator": discriminator}, batch)
    with pytest.raises(ValueError, match="^r1_gradient: got forward_mode, .*double_backward") as error:
        D2O(r1_gradient="forward_mode").r1_loss({"discriminator": discriminator}, batch)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="^backbones: "):
        _pooled(backbones={})
    backbone = Backbone(
        nn.Identity(), channels=1, tap_channels=(1,), strides=(1,), mean=(0.5,), std=(0.5,), image_size=32
    )
    with pytest.raises(ValueError, match="^resolution: got None, expected 32"):
        _pooled(backbones={"eye": backbone})
    config = {"name": "pooled_features", "backbones": ["eye"]}
    with pytest.raises(ValueError, match="^discriminator: got pooled_features, .* no classes"):
        build_discriminator(config, backbones={"eye": _classifier()}, embedding=None, classes=3, seed=0)
