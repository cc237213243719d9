"""`onestep evaluate` and torch-fidelity on the same folder of pictures, with the same random weights."""

from __future__ import annotations

import json

import pytest
import torch_fidelity
from PIL import Image
from random_networks import blobs, write_inception

from onestep.cli import main
from onestep.files import read_json

_METRICS = (
    {"name": "frechet"},
    {"name": "inception_score", "splits": 2},
    {"name": "precision_recall"},
    {"name": "kernel_distance", "subsets": 3, "subset_images": 10},
)


def _folder(path, pixels):
    path.mkdir()
    for index, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(path / f"{index:05}.png")
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    return {
        "generated": _folder(root / "generated", blobs(10, seed=0, contrast=30.0)),
        "real": _folder(root / "real", blobs(10, seed=1)),
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = write_inception(tmp_path_factory.mktemp("weights") / "inception.pth")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def ours(folders, weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("found") / "found.json"
    options = ["--features", '{"name": "inception"}', "--weights", str(weights), "--output", str(output)]
    pictures = ["--images", str(folders["generated"]), "--reference", str(folders["real"])]
    assert main(["evaluate", *pictures, *options, "--metrics", *map(json.dumps, _METRICS)]) == 0
    return read_json(output)["values"]


@pytest.fixture(scope="module")
def theirs(folders, weights):
    return torch_fidelity.calculate_metrics(
        input1=str(folders["generated"]),
        input2=str(folders["real"]),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        feature_layer_prc="2048",
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        isc_splits=2,
        kid_subset_size=10,  # all images, so that it does not matter how they are drawn
        kid_subsets=3,
        samples_shuffle=False,
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # no processes that read
        verbose=False,
    )


_NAMES = {
    "frechet": "frechet_inception_distance",
    "inception_score": "inception_score_mean",
    "inception_score_std": "inception_score_std",
    "precision": "precision",
    "recall": "recall",
    "kernel_distance": "kernel_inception_distance_mean",
}


@pytest.mark.parametrize("name", _NAMES)
def test_numbers_are_those_of_torch_fidelity(ours, theirs, name):
    # Small differences of large numbers: of sums over kernels, which theirs has in float32, and of two scores.
    tolerance = 1e-3 if name in ("kernel_distance", "inception_score_std") else 1e-4
    assert ours[name] == pytest.approx(theirs[_NAMES[name]], rel=tolerance)


def test_the_numbers_say_something(ours):
    assert ours["frechet"] > 1e-3 and ours["inception_score"] > 1.001 and ours["kernel_distance"] > 1e-4
    assert 0 < ours["precision"] + ours["recall"] < 2
