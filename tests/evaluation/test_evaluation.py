"""From files of images to files of numbers: what is compared with what is written down, and mixtures are refused."""

import json

import numpy as np
import pytest
import torch

from onestep.archive import read_arrays, write_arrays
from onestep.cli import main
from onestep.evaluation.extraction import FeatureNetwork, read_pixels, write_features
from onestep.evaluation.measurement import write_measurement
from onestep.features import Features
from onestep.files import read_json
from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.inception_score import InceptionScore

BLOCK = {"model": "d2o@64", "sampler": "one_step", "seeds": "0-299"}


def mean_and_spread(pixels: torch.Tensor) -> Features:
    """Two numbers an image: a feature network without classes."""
    flat = pixels.double().flatten(1)
    return Features(features=torch.stack([flat.mean(1), flat.std(1)], dim=1).float(), probabilities=None)


@pytest.fixture
def images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)
    path = tmp_path / "samples" / "d2o@64" / "one_step" / "0-299.npz"
    write_arrays(path, {"pixels": pixels}, about={"subject": BLOCK})
    return path


def extracted(images, tmp_path, *, name, weights="w", subject=None):
    file = tmp_path / f"{weights}.weights"
    file.write_text(weights)
    output = tmp_path / "features" / name
    network = FeatureNetwork(extractor=mean_and_spread, weights=file, options={"name": "mean"}, name="two")
    write_features(network, images, output=output, subject=subject)
    return output


def measured(metric, tmp_path, **files):
    """Measure and return the record."""
    output = tmp_path / "number.json"
    write_measurement(metric, name="x", options={"name": "y"}, output=output, **files)
    return read_json(output)


def test_features_keep_the_order_and_the_digest_of_the_images(images, tmp_path):
    found = read_arrays(extracted(images, tmp_path, name="d2o@64/one_step/0-299.two.npz"))
    expected = mean_and_spread(torch.from_numpy(read_pixels(images))).features.numpy()
    np.testing.assert_array_equal(found.arrays["features"], expected)
    assert found.about["images"] == 300 and "probabilities" not in found.arrays


def test_a_measurement_contains_the_identity_of_all_that_was_compared(images, tmp_path):
    generated = extracted(images, tmp_path, name="any_name.npz")
    real = extracted(images, tmp_path, name="another.npz", subject={"dataset": "digits"})
    found = measured(FrechetDistance(), tmp_path, generated=generated, real=real)
    assert {key: found[key] for key in BLOCK} == BLOCK
    assert (found["features"], found["images"], found["reference"]["dataset"]) == ("two", 300, "digits")
    assert found["values"]["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert (found["better"], found["options"]) == ({"frechet": "lower"}, {"name": "y"})
    assert found["feature_network"] == {"name": "mean"} and found["pixels_sha256"] == found["reference"]["sha256"]


def test_files_without_identity_are_refused_in_one_line(images, tmp_path):
    generated = extracted(images, tmp_path, name="old.npz", subject={})
    real = extracted(images, tmp_path, name="real.npz", subject={"dataset": "digits"})
    for files in ({"generated": generated, "real": real}, {"generated": real, "real": generated}):
        with pytest.raises(ValueError, match=r"old\.npz: got no ") as caught:
            measured(FrechetDistance(), tmp_path, **files)
        assert "\n" not in str(caught.value)


def test_features_of_different_networks_are_not_compared(images, tmp_path):
    generated = extracted(images, tmp_path, name="a.npz", weights="a")
    real = extracted(images, tmp_path, name="b.npz", weights="b", subject={"dataset": "digits"})
    with pytest.raises(ValueError, match="different weights of the feature network"):
        measured(FrechetDistance(), tmp_path, generated=generated, real=real)
    assert not (tmp_path / "number.json").exists()


def test_a_metric_of_classes_needs_a_network_that_classifies(images, tmp_path):
    generated = extracted(images, tmp_path, name="a.npz")
    with pytest.raises(ValueError, match=r"a\.npz: metric 'x': .*probabilities"):
        measured(InceptionScore(splits=2), tmp_path, generated=generated)


class Contrast:
    """A metric of pixels: standard deviations of generated over real images."""

    inputs = ("pixels", "real_pixels")
    values = {"contrast": "higher"}
    takes_statistics = False
    least_images = 1

    def __call__(self, *, pixels, real_pixels):
        assert pixels.dtype == np.uint8 and pixels.shape == (300, 1, 4, 4)
        return {"contrast": float(pixels.std() / real_pixels.std())}


def test_a_metric_of_pixels_is_measured_from_images_alone(images, tmp_path):
    real = tmp_path / "real.npz"
    write_arrays(real, {"pixels": np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1)}, about={})
    found = measured(Contrast(), tmp_path, pixels=images, real_pixels=real)
    expected = read_pixels(images).std() / read_pixels(real).std()
    assert found["values"] == {"contrast": pytest.approx(expected)}
    assert {key: found[key] for key in BLOCK} == BLOCK
    assert (found["features"], found["feature_weights_sha256"], found["images"]) == (None, None, 300)
    assert set(found["reference"]) == {"real_pixels_sha256"}
    with pytest.raises(ValueError, match="metric 'x': .*real_pixels"):
        measured(Contrast(), tmp_path, pixels=images)


def test_pixels_and_features_of_different_images_are_refused(images, tmp_path):
    generated = extracted(images, tmp_path, name="a.npz")
    assert measured(Contrast(), tmp_path, generated=generated, pixels=images, real_pixels=images)["images"] == 300
    write_arrays(images, {"pixels": np.zeros((300, 4, 4, 1), np.uint8)}, about={"subject": BLOCK})
    with pytest.raises(ValueError, match="0-299.npz: got other images"):
        measured(Contrast(), tmp_path, generated=generated, pixels=images, real_pixels=images)


def test_pixels_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "wrong.npz"
    write_arrays(path, {"pixels": np.zeros((3, 4, 4))}, about=json.loads("{}"))
    with pytest.raises(ValueError, match=r"wrong\.npz: pixels: got float64 \[3, 4, 4\]"):
        read_pixels(path)


def features_of(path, rows, subject=BLOCK):
    """Write features as `onestep extract` does."""
    about = {
        "subject": subject,
        "features": "two",
        "images": len(rows),
        "pixels_sha256": "0",
        "weights_sha256": "w",
        "network": {},
    }
    write_arrays(path, {"features": rows.astype(np.float32)}, about=about)
    return path


CLOUD = np.random.default_rng(0).standard_normal((20, 6))
SPOILT = np.where(np.arange(20)[:, None] == 3, np.nan, CLOUD)
REFUSED = {
    "not finite": (SPOILT, CLOUD, "generated features: 1 of 20 images have values that are not finite"),
    "a reference that is not finite": (CLOUD, SPOILT, "real features: 1 of 20 images have values that are not finite"),
    "one image": (CLOUD[:1], CLOUD, "generated features: got 1 images, expected at least "),
    "no image": (CLOUD[:0], CLOUD, "generated features: got 0 images, expected at least "),
    "another width": (CLOUD, CLOUD[:, :5], "features: got generated ones of width 6 and real ones of width 5"),
}


@pytest.mark.parametrize("metric", ["frechet", "kernel_distance", "precision_recall"])
@pytest.mark.parametrize(("generated", "real", "line"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path, capsys, metric, generated, real, line):
    path = features_of(tmp_path / "d2o@64" / "one_step" / "0-19.two.npz", generated)
    reference = features_of(tmp_path / "digits.two.npz", real, subject={"dataset": "digits"})
    options = {"frechet": {}, "kernel_distance": {"subset_images": 10}}.get(metric, {"neighbours": 3})
    files = ["--generated", str(path), "--real", str(reference), "--output", str(tmp_path / "number.json")]
    assert main(["measure", "--metric", json.dumps({"name": metric, **options}), "--name", "x", *files]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"onestep measure: {path} against {reference}: {line}"), said
    assert not (tmp_path / "number.json").exists()


def test_statistics_of_another_width_are_refused_in_one_line(tmp_path, capsys):
    path = features_of(tmp_path / "d2o@64" / "one_step" / "0-19.two.npz", CLOUD)
    np.savez(tmp_path / "published.npz", mu=np.zeros(5), sigma=np.eye(5))
    files = ["--generated", str(path), "--real", f"{tmp_path}/published.npz", "--output", f"{tmp_path}/number.json"]
    assert main(["measure", "--metric", '{"name": "frechet"}', "--name", "fid", *files]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/published.npz: got statistics mu [5]" in said and " 6" in said


METRIC = '''
class Contrast:
    """Ratio of standard deviations."""

    inputs = ("pixels", "real_pixels")
    values = {"contrast": "higher"}
    takes_statistics = False

    def __init__(self, *, scale: float = 1.0) -> None:
        self.scale = scale

    @property
    def least_images(self) -> int:
        return 1

    def __call__(self, *, pixels, real_pixels):
        return {"contrast": self.scale * float(pixels.std() / real_pixels.std())}
'''


def test_a_metric_of_pixels_from_outside_the_package(images, tmp_path, monkeypatch, capsys):
    (tmp_path / "outside_metric.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    block, number = json.dumps({"name": "outside_metric:Contrast", "scale": 2.0}), tmp_path / "number.json"
    files = ["--pixels", str(images), "--real-pixels", str(images), "--output", str(number)]
    assert main(["measure", "--metric", block, "--name", "x", *files]) == 0
    assert read_json(number)["values"] == {"contrast": 2.0}
    files = ["--images", str(images), "--reference", str(images), "--output", str(number)]
    assert main(["evaluate", "--metrics", block, *files]) == 0
    assert read_json(number)["values"] == {"contrast": 2.0}
    assert ["contrast", "2", "higher"] in [line.split() for line in capsys.readouterr().out.splitlines()]
