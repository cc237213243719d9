"""Features of digits: read from a snapshot, and the same in whatever batch."""

from __future__ import annotations

import pytest
import torch

from onestep.checkpoints.snapshot import write_snapshot
from onestep.classifiers import build_classifier
from onestep.features.classifier import ClassifierFeatures

_CLASSIFIER = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 10, "width": 8}


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return build_classifier(_CLASSIFIER)


@pytest.fixture(scope="module")
def extractor(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "classifier.safetensors"
    write_snapshot(path, classifier.state_dict(), _CLASSIFIER)
    return ClassifierFeatures(weights=path)


def _pixels(rows):
    return torch.randint(256, (rows, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))


def test_features_and_probabilities_are_the_classifiers(classifier, extractor):
    pixels = _pixels(7)
    found = extractor(pixels)
    wanted = classifier(pixels.float() / 127.5 - 1)
    torch.testing.assert_close(found.features, wanted.features)
    torch.testing.assert_close(found.probabilities, wanted.logits.softmax(dim=1))
    assert found.features.shape == (7, classifier.feature_width)
    assert not found.features.requires_grad and not found.probabilities.requires_grad


def test_probabilities_sum_to_one(extractor):
    torch.testing.assert_close(extractor(_pixels(5)).probabilities.sum(dim=1), torch.ones(5))


@pytest.mark.parametrize("rows", [1, 3, 64, 130])
def test_features_do_not_depend_on_the_batch_size_by_a_bit(extractor, rows):
    pixels = _pixels(260)
    whole = extractor(pixels)
    parts = [extractor(part) for part in pixels.split(rows)]
    for kind in ("features", "probabilities"):
        assert torch.equal(torch.cat([getattr(part, kind) for part in parts]), getattr(whole, kind))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 1, 16, 16),
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
    ],
)
def test_other_pixels_are_refused(extractor, pixels):
    with pytest.raises(ValueError, match=r"^pixels: .* \[2, .* uint8 \[B, 1, 16, 16\]"):
        extractor(pixels)
