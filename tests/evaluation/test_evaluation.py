"""From files of images to files of numbers: what is compared with what is written down, and mixtures are refused."""

import json

import numpy as np
import pytest
import torch

from onestep.archive import read_arrays, write_arrays
from onestep.cli import main
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


def features_of(path, rows):
    """Write features as `onestep extract` does."""
    about = {"images": len(rows), "pixels_sha256": "0", "weights_sha256": "w", "network": {}}
    write_arrays(path, {"features": rows.astype(np.float32)}, about=about)
    return path


CLOUD = np.random.default_rng(0).standard_normal((20, 6))
SPOILT = np.where(np.arange(20)[:, None] == 3, np.nan, CLOUD)
REFUSED = {
    "not finite": (SPOILT, CLOUD, "generated features: 1 of 20 images have values that are not finite"),
    "a reference that is not finite": (CLOUD, SPOILT, "real features: 1 of 20 images have values that are not finite"),
    "one image": (CLOUD[:1], CLOUD, "generated features: found 1 images, needed at least "),
    "no image": (CLOUD[:0], CLOUD, "generated features: found 0 images, needed at least "),
    "another width": (CLOUD, CLOUD[:, :5], "generated features are 6 wide, real features 5; extract both"),
}


@pytest.mark.parametrize("metric", ["frechet", "kernel_distance", "precision_recall"])
@pytest.mark.parametrize(("generated", "real", "line"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path, capsys, metric, generated, real, line):
    path = features_of(tmp_path / "model@64" / "one_step" / "0-19.two.npz", generated)
    reference = features_of(tmp_path / "digits.two.npz", real)
    options = {"frechet": {}, "kernel_distance": {"subset_images": 10}}.get(metric, {"neighbours": 3})
    files = ["--generated", str(path), "--real", str(reference), "--output", str(tmp_path / "number.json")]
    assert main(["measure", "--metric", json.dumps({"name": metric, **options}), "--name", "x", *files]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"onestep measure: {path} against {reference}: {line}"), said
    assert not (tmp_path / "number.json").exists()


def test_statistics_of_another_width_are_refused_in_one_line(tmp_path, capsys):
    path = features_of(tmp_path / "model@64" / "one_step" / "0-19.two.npz", CLOUD)
    np.savez(tmp_path / "published.npz", mu=np.zeros(5), sigma=np.eye(5))
    files = ["--generated", str(path), "--real", f"{tmp_path}/published.npz", "--output", f"{tmp_path}/number.json"]
    assert main(["measure", "--metric", '{"name": "frechet"}', "--name", "fid", *files]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/published.npz: statistics of another width than the generated features, 6: found mu [5]" in said
