"""Batch norms folded into convolutions: the same maps, up to rounding, and the same gradients."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from onestep.discriminators._backbones import Backbone, fold_batch_norms, freeze, timm_backbone
from onestep.discriminators.projected import Projected

_CONVNET, _TRANSFORMER = "test_efficientnet.r160_in1k", "test_vit.r160_in1k"
_SIZE = 160


def _backbone(name=_CONVNET) -> Backbone:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    return timm_backbone(model, name=name)


def _norms(module):
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def _taps_and_slope(backbone):
    images = torch.rand(1, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(1)).mul(2).sub(1).requires_grad_()
    taps = backbone(images)
    (slope,) = torch.autograd.grad(sum(tap.sum() for tap in taps), images)
    return taps, slope


def test_folded_equals_unfolded():
    whole, folded = _backbone(), _backbone()
    count = fold_batch_norms(folded.network)
    assert count == len(_norms(whole)) and not _norms(folded)
    (taps, slope), (folded_taps, folded_slope) = _taps_and_slope(whole), _taps_and_slope(folded)
    for found, wanted in zip(folded_taps, taps, strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (folded_slope - slope).norm() <= 1e-5 * slope.norm()
    assert not list(folded.parameters())


def test_a_network_without_batch_norms_is_left_alone():
    backbone = _backbone(_TRANSFORMER)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert fold_batch_norms(backbone.network) == 0
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Shared(nn.Module):
    """The convolution has a second reader; the other batch norm comes first."""

    def __init__(self):
        super().__init__()
        self.first, self.convolution, self.norm = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        maps = self.convolution(self.first(images))
        return self.norm(maps) + maps


class Numeric(nn.Module):
    """Goes where its numbers point."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        return self.norm(self.convolution(images)) if images.sum() > 0 else images


@pytest.mark.parametrize("network", [Shared, Numeric])
def test_what_cannot_be_folded_stays(network):
    frozen = freeze(network())
    assert fold_batch_norms(frozen) == 0 and _norms(frozen)


def test_a_discriminator_folds_after_the_probe_unless_told_not_to():
    def projected(**changes):
        options = {"channels": 8, "resolution": _SIZE, "seed": 3, "batch_norm": "probed"} | changes
        return Projected(backbones={"one": _backbone()}, **options).train()

    images = torch.rand(2, 3, _SIZE, _SIZE) * 2 - 1
    folded, whole = projected(), projected(fold_batch_norm=False)
    assert not _norms(folded.pretrained) and _norms(whole.pretrained)
    for found, wanted in zip(folded.frozen_features(images)[0], whole.frozen_features(images)[0], strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
