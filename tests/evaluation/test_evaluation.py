"""From files of images to files of numbers: what is compared with what is written down, and mixtures are refused."""

import json

import numpy as np
import pytest
import torch

from onestep.archive import read_arrays, write_arrays
from onestep.evaluation.extraction import read_pixels, write_features
from onestep.evaluation.measurement import write_measurement
from onestep.features import Features
from onestep.files import read_json
from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.inception_score import InceptionScore


def mean_and_spread(pixels: torch.Tensor) -> Features:
    """Two numbers an image: a feature network without classes."""
    flat = pixels.double().flatten(1)
    return Features(features=torch.stack([flat.mean(1), flat.std(1)], dim=1).float(), probabilities=None)


@pytest.fixture
def images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)
    path = tmp_path / "samples" / "model@64" / "one_step" / "0-299.npz"
    write_arrays(path, {"pixels": pixels}, about={})
    return path


def extracted(images, tmp_path, *, name, weights="w"):
    file = tmp_path / f"{weights}.weights"
    file.write_text(weights)
    output = tmp_path / "features" / name
    write_features(mean_and_spread, images, weights=file, options={"name": "two"}, output=output)
    return output


def test_features_keep_the_order_and_the_digest_of_the_images(images, tmp_path):
    found = read_arrays(extracted(images, tmp_path, name="model@64/one_step/0-299.two.npz"))
    expected = mean_and_spread(torch.from_numpy(read_pixels(images))).features.numpy()
    np.testing.assert_array_equal(found.arrays["features"], expected)
    assert found.about["images"] == 300 and "probabilities" not in found.arrays


def test_a_measurement_names_model_blocks_and_reference(images, tmp_path):
    generated = extracted(images, tmp_path, name="model@64/one_step/0-299.two.npz")
    real = extracted(images, tmp_path, name="digits.two.npz")
    write_measurement(FrechetDistance(), name="fd", generated=generated, real=real, output=tmp_path / "fd.json")
    found = read_json(tmp_path / "fd.json")
    assert (found["model"], found["sampler"], found["seeds"]) == ("model@64", "one_step", "0-299")
    assert (found["features"], found["images"], found["reference"]["dataset"]) == ("two", 300, "digits")
    assert found["values"]["frechet"] == pytest.approx(0.0, abs=1e-6)


def test_features_of_different_networks_are_not_compared(images, tmp_path):
    generated = extracted(images, tmp_path, name="model@64/one_step/0-299.two.npz", weights="a")
    real = extracted(images, tmp_path, name="digits.two.npz", weights="b")
    with pytest.raises(ValueError, match="different weights of the feature network"):
        write_measurement(FrechetDistance(), name="fd", generated=generated, real=real, output=tmp_path / "fd.json")
    assert not (tmp_path / "fd.json").exists()


def test_a_metric_on_classes_needs_a_network_that_classifies(images, tmp_path):
    generated = extracted(images, tmp_path, name="model@64/one_step/0-299.two.npz")
    with pytest.raises(ValueError, match="'is' needs class probabilities"):
        write_measurement(
            InceptionScore(splits=2), name="is", generated=generated, real=generated, output=tmp_path / "is.json"
        )


def test_pixels_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "wrong.npz"
    write_arrays(path, {"pixels": np.zeros((3, 4, 4))}, about=json.loads("{}"))
    with pytest.raises(ValueError, match=r"wrong\.npz: holds no uint8 \[N, H, W, C\] array 'pixels'"):
        read_pixels(path)
