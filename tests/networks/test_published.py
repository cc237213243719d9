"""The architectures of published checkpoints, by name."""

import pytest
import torch

from onestep.networks import build_denoiser, published_architecture

_PARAMETERS = {
    "edm-cifar10-32x32-uncond-vp": 55_733_891,
    "edm-cifar10-32x32-cond-ve": 56_400_643,
    "edm-ffhq-64x64-uncond-ve": 62_761_091,
    "edm-afhqv2-64x64-uncond-vp": 61_805_571,
    "edm-imagenet-64x64-cond-adm": 295_899_267,
    "ddpm-cifar10-32": 35_746_307,
}


@pytest.mark.parametrize(("name", "parameters"), _PARAMETERS.items())
def test_a_published_architecture_has_the_checkpoints_number_of_parameters(name, parameters):
    with torch.device("meta"):
        network = build_denoiser(published_architecture(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'edm-lsun'.*edm-cifar10-32x32-uncond-vp"):
        published_architecture("edm-lsun")
