"""Published references: statistics and batches of images, and each way in which they may not fit."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from onestep.archive import read_arrays, write_arrays
from onestep.evaluation.extraction import FeatureNetwork, read_pixels, write_features
from onestep.evaluation.measurement import read_reference, write_measurement
from onestep.features import Features
from onestep.files import read_json, sha256_of_file
from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.inception_score import InceptionScore
from onestep.metrics.precision_recall import PrecisionRecall

_WIDTH = 6


BLOCK = {"model": "run@64", "sampler": "one_step", "seeds": "0-199"}


def _features(path, *, images=200, seed=0, network=None, weights="a" * 64, subject=BLOCK):
    rows = np.random.default_rng(seed).standard_normal((images, _WIDTH)).astype(np.float32)
    about = {"images": images, "pixels_sha256": f"{seed}", "weights_sha256": weights, "network": network or {}}
    about |= {"subject": subject, "features": "inception"}
    write_arrays(path, {"features": rows}, about=about)
    return rows


def _statistics(rows, **changes):
    rows = rows.astype(np.float64)
    return {"mu": rows.mean(0), "sigma": np.cov(rows, rowvar=False)} | changes


@pytest.fixture
def generated(tmp_path):
    path = tmp_path / "features" / "run@64" / "one_step" / "0-199.inception.npz"
    path.parent.mkdir(parents=True)
    _features(path, seed=1)
    return path


@pytest.fixture
def published(tmp_path):
    """A function that saves arrays as a publisher does: without our word about them."""

    def save(**arrays):
        path = tmp_path / "inputs" / "cifar10_reference" / "cifar10-32x32.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
        return path

    return save


def _measured(metric, generated, real, tmp_path, **named):
    output = tmp_path / "number.json"
    write_measurement(metric, name="fid", options={}, generated=generated, real=real, output=output, **named)
    return read_json(output)


def test_published_statistics_give_the_number_that_their_features_give(generated, published, tmp_path):
    own = tmp_path / "features" / "cifar10.inception.npz"
    real = _features(own, seed=2, subject={"dataset": "cifar10"})
    against_own = _measured(FrechetDistance(), generated, own, tmp_path)
    path = published(**_statistics(real))
    found = _measured(FrechetDistance(), generated, path, tmp_path, real_input="cifar10_reference")
    assert found["values"]["frechet"] == pytest.approx(against_own["values"]["frechet"], rel=1e-9)
    assert found["reference"] == {
        "input": "cifar10_reference",
        "statistics": "mu, sigma",
        "sha256": sha256_of_file(path),
    }
    assert against_own["reference"] == {"dataset": "cifar10", "images": 200, "sha256": "2"}
    assert found["precision"] == "float32"
    assert _measured(FrechetDistance(), generated, path, tmp_path)["reference"]["file"] == path.name


def test_statistics_of_edm2_give_the_same_number_as_an_npz_of_them(generated, published, tmp_path):
    real = _statistics(_features(tmp_path / "real.npz", seed=2))
    path = tmp_path / "img64.pkl"
    path.write_bytes(pickle.dumps({"num_images": 200, "fid": real, "fd_dinov2": _statistics(np.eye(3))}, protocol=4))
    one, other = (_measured(FrechetDistance(), generated, each, tmp_path) for each in (path, published(**real)))
    assert one["values"] == other["values"]
    assert one["reference"] == {"file": "img64.pkl", "statistics": "mu, sigma", "sha256": sha256_of_file(path)}


def test_the_pair_of_the_right_width_is_taken(generated, published):
    spatial = _statistics(read_arrays(generated).arrays["features"])
    path = published(mu=np.zeros(9), sigma=np.eye(9), mu_s=spatial["mu"], sigma_s=spatial["sigma"])
    found = read_reference(path, width=_WIDTH, weights_sha256="a" * 64, takes_statistics=True)
    assert found.facts["statistics"] == "mu_s, sigma_s"
    np.testing.assert_array_equal(found.real.mean, spatial["mu"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": np.zeros(9)}, r"got statistics mu \[9\], .* 6"),
        ({"sigma": None}, "got no statistics"),
        ({"sigma": np.eye(5)}, r"sigma: got \[5, 5\], expected \[6, 6\]"),
        ({"mu": np.full(6, np.nan)}, "mu: got values that are not finite"),
        ({"mu": np.zeros(6, dtype=np.int64)}, "mu: got int64"),
        ({"sigma": np.triu(np.ones((6, 6)))}, "sigma: got a matrix that is not symmetric"),
        ({"mu": np.array([None] * 6)}, "not a whole .npz of plain arrays"),
    ],
)
def test_statistics_that_do_not_fit_are_refused_in_one_line(generated, published, tmp_path, changes, message):
    arrays = _statistics(read_arrays(generated).arrays["features"]) | changes
    path = published(**{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=rf"cifar10-32x32\.npz: .*{message}") as caught:
        _measured(FrechetDistance(), generated, path, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused(generated, published, tmp_path):
    path = published(**_statistics(read_arrays(generated).arrays["features"]))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cifar10-32x32\.npz: not a whole \.npz of plain arrays \(File is not a zip"):
        _measured(FrechetDistance(), generated, path, tmp_path)


def test_a_metric_of_features_does_not_take_statistics(generated, published, tmp_path):
    path = published(**_statistics(read_arrays(generated).arrays["features"]))
    with pytest.raises(ValueError, match=r"cifar10-32x32\.npz: got statistics, expected features"):
        _measured(PrecisionRecall(), generated, path, tmp_path)


def test_the_images_of_a_published_batch_become_features(generated, published, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)
    path = published(arr_0=pixels, mu=np.zeros(3))
    np.testing.assert_array_equal(read_pixels(path), pixels.transpose(0, 3, 1, 2))
    weights = tmp_path / "weights"
    weights.write_text("w")
    output = tmp_path / "features" / "reference" / "adm.inception.npz"

    def first_six(batch):
        return Features(features=batch.flatten(1)[:, :_WIDTH].float(), probabilities=None)

    network = FeatureNetwork(extractor=first_six, weights=weights, options={"name": "first_six"}, name="six")
    write_features(network, path, output=output, subject={"input": "adm"})
    facts = read_reference(output, width=_WIDTH, weights_sha256=sha256_of_file(weights), takes_statistics=False).facts
    assert facts == {"input": "adm", "images": 20, "sha256": read_arrays(output).about["pixels_sha256"]}
    with pytest.raises(ValueError, match="different weights of the feature network"):
        _measured(PrecisionRecall(), generated, output, tmp_path)


@pytest.mark.parametrize("arrays", [{"arr_0": np.zeros((3, 4, 4, 3))}, {"mu": np.zeros(3)}])
def test_a_published_batch_without_uint8_images_is_refused(published, arrays):
    with pytest.raises(ValueError, match=r"cifar10-32x32\.npz: arr_0: got "):
        read_pixels(published(**arrays))


def test_a_datasets_own_features_are_held_against_its_reference(published, tmp_path):
    own = tmp_path / "features" / "cifar10.inception.npz"
    own.parent.mkdir(parents=True)
    real = _features(own, seed=2, subject={"dataset": "cifar10"})
    found = _measured(FrechetDistance(), own, published(**_statistics(real)), tmp_path)
    assert found["dataset"] == "cifar10" and "model" not in found
    assert found["values"]["frechet"] == pytest.approx(0, abs=1e-6)


def test_a_number_of_generated_images_alone_has_no_reference(generated, tmp_path):
    rows = np.full((200, 4), 0.25, np.float32)
    found = read_arrays(generated)
    write_arrays(generated, {**found.arrays, "probabilities": rows}, about=found.about)
    measured = _measured(InceptionScore(splits=2), generated, None, tmp_path)
    assert measured["reference"] is None and measured["values"]["inception_score"] == pytest.approx(1)
    own = tmp_path / "features" / "cifar10.inception.npz"
    _features(own, seed=2, subject={"dataset": "cifar10"})
    assert _measured(InceptionScore(splits=2), generated, own, tmp_path)["reference"]["dataset"] == "cifar10"


def test_a_faster_precision_is_written_down(generated, tmp_path):
    own = tmp_path / "features" / "cifar10.inception.npz"
    faster = {"name": "inception", "precision": "tf32"}
    _features(own, seed=2, subject={"dataset": "cifar10"})
    _features(generated, network=faster)
    with pytest.raises(ValueError, match=r"cifar10\.inception\.npz: got features in float32, expected tf32"):
        _measured(FrechetDistance(), generated, own, tmp_path)
    _features(own, seed=2, subject={"dataset": "cifar10"}, network=faster)
    assert _measured(FrechetDistance(), generated, own, tmp_path)["precision"] == "tf32"
    assert json.loads((tmp_path / "number.json").read_text())["feature_weights_sha256"] == "a" * 64


def test_networks_compute_without_gradients(tmp_path, generated):
    seen = []

    def looking(batch):
        seen.append((batch.dtype, torch.is_grad_enabled()))
        return Features(features=torch.zeros(len(batch), 1), probabilities=None)

    images = tmp_path / "samples.npz"
    write_arrays(images, {"pixels": np.zeros((3, 4, 4, 1), np.uint8)}, about={})
    network = FeatureNetwork(extractor=looking, weights=generated, options={})
    write_features(network, images, output=tmp_path / "out.npz")
    assert seen == [(torch.uint8, False)]
