"""The small classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from onestep.classifiers import build_classifier
from onestep.classifiers.convnet import ConvNet


@pytest.mark.parametrize(("resolution", "channels", "classes", "width"), [(16, 1, 10, 4), (64, 3, 7, 8)])
def test_prediction_has_the_shapes_of_the_contract(resolution, channels, classes, width):
    network = build_classifier(
        {"name": "convnet", "resolution": resolution, "channels": channels, "classes": classes, "width": width}
    )
    prediction = network(torch.randn(2, channels, resolution, resolution))
    assert prediction.logits.shape == (2, classes)
    assert prediction.features.shape == (2, network.feature_width)
    sizes = [resolution >> level for level in range(4)]
    wanted = [(2, c, size, size) for c, size in zip(network.tap_channels, sizes, strict=True)]
    assert [tuple(tap.shape) for tap in prediction.taps] == wanted


def test_it_is_the_same_function_in_training_and_for_each_row():
    torch.manual_seed(0)
    network, images = ConvNet(resolution=16, channels=1, classes=10, width=4), torch.randn(6, 1, 16, 16)
    training = network.train()(images).logits
    assert torch.equal(network.eval()(images).logits, training)
    torch.testing.assert_close(network(images[2:3]).logits, training[2:3])


def test_contrast_and_brightness_reach_the_features():
    torch.manual_seed(0)
    network, images = ConvNet(resolution=16, channels=1, classes=10, width=4), torch.rand(4, 1, 16, 16)
    features = network(images).features
    for changed in (0.7 * images, images + 0.3):
        change = (network(changed).features - features).norm() / features.norm()
        assert change > 0.05


def test_it_learns_in_a_few_steps():
    torch.manual_seed(0)
    network = ConvNet(resolution=16, channels=1, classes=4, width=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    patterns, classes = torch.randn(4, 1, 16, 16), torch.arange(64) % 4
    for _ in range(40):
        loss = F.cross_entropy(network(patterns[classes] + 0.5 * torch.randn(64, 1, 16, 16)).logits, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted = network(patterns[classes] + 0.5 * torch.randn(64, 1, 16, 16)).logits.argmax(dim=1)
    assert (predicted == classes).float().mean() > 0.95


@pytest.mark.parametrize("resolution", [8, 24])
def test_resolutions_it_cannot_halve_three_times_are_refused(resolution):
    with pytest.raises(ValueError, match=f"^resolution: got {resolution}, .* 16 "):
        ConvNet(resolution=resolution, channels=1, classes=10, width=4)
