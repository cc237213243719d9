"""Fused sampling and feature extraction: the same bytes of features as through files."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from onestep.archive import read_arrays
from onestep.checkpoints.snapshot import write_snapshot
from onestep.classifiers import build_classifier
from onestep.cli import main
from onestep.evaluation.extraction import extract
from onestep.evaluation.fused_sampling import places
from onestep.features import Features
from onestep.networks import build_denoiser

DENOISER = {
    "name": "song_unet",
    "img_resolution": 16,
    "img_channels": 1,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (8,),
    "label_dim": 3,
    "preconditioning": "d2o",
}
SAMPLER = json.dumps({"name": "one_step", "sigma": 80.0})
NAMES = ["--model", "d2o@64", "--sampler-name", "quick"]
SEEDS = "10-529"  # three calls of a network: 256, 256 and 8 images


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A generator, and two feature networks by name."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = build_denoiser(DENOISER)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3)
    write_snapshot(folder / "generator.safetensors", network.state_dict(), DENOISER)
    for name, width in (("narrow", 8), ("wide", 12)):
        config = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 10, "width": width}
        write_snapshot(folder / f"{name}.safetensors", build_classifier(config).state_dict(), config)
    return folder


@pytest.fixture(scope="module")
def through_files(weights, tmp_path_factory):
    """A folder with a sample file, its grid, and the features of both networks."""
    return _sampled_and_extracted(weights, tmp_path_factory.mktemp("files"))


def _sampled_and_extracted(weights, folder):
    drawn = ["--weights", f"{weights}/generator.safetensors", "--sampler", SAMPLER, "--seeds", SEEDS, *NAMES]
    images, grid = f"{folder}/{SEEDS}.npz", f"{folder}/grid.npz"
    assert main(["sample", *drawn, "--batch", "64", "--grid", grid, "--output", images]) == 0
    for name in ("narrow", "wide"):
        options = ["--features", '{"name": "classifier"}', "--weights", f"{weights}/{name}.safetensors"]
        options += ["--features-name", name]
        assert main(["extract", "--images", images, *options, "--output", f"{folder}/{SEEDS}.{name}.npz"]) == 0
    return folder


def observation(weights, folder, *, batch):
    """Return the arguments of an observation."""
    names = ("narrow", "wide")
    drawn = ["--weights", f"{weights}/generator.safetensors", "--sampler", SAMPLER, "--seeds", SEEDS, *NAMES]
    looked = ["--features", json.dumps({name: {"name": "classifier"} for name in names}), "--feature-weights"]
    looked += [f"{name}={weights}/{name}.safetensors" for name in names]
    written = ["--grid", f"{folder}/grid.npz", "--output", f"{folder}/{SEEDS}"]
    return ["observe", *drawn, "--batch", str(batch), *looked, *written]


@pytest.mark.parametrize("batch", [7, 64, 256])
def test_one_pass_writes_the_bytes_that_files_give_in_whatever_batch(through_files, weights, tmp_path, batch):
    assert main(observation(weights, tmp_path, batch=batch)) == 0
    expected = {path.name: path.read_bytes() for path in through_files.iterdir()}
    images = expected.pop(f"{SEEDS}.npz")
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == expected and len(found) == 3
    assert sum(map(len, found.values())) < 2 * len(images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_too_one_pass_writes_the_bytes_that_files_give(weights, tmp_path):
    for name in ("files", "one_pass"):
        (tmp_path / name).mkdir()
    _sampled_and_extracted(weights, tmp_path / "files")
    assert main(observation(weights, tmp_path / "one_pass", batch=64)) == 0
    found = {path.name: path.read_bytes() for path in (tmp_path / "one_pass").iterdir()}
    assert len(found) == 3
    assert found == {name: (tmp_path / "files" / name).read_bytes() for name in found}


def test_features_contain_the_identity_of_images_and_network(through_files):
    about = read_arrays(through_files / f"{SEEDS}.wide.npz").about
    assert about["subject"] == {"model": "d2o@64", "sampler": "quick", "seeds": SEEDS}
    assert (about["features"], about["network"], about["images"]) == ("wide", {"name": "classifier"}, 520)


@pytest.mark.parametrize(("processes", "batch"), [pytest.param(3, 7, marks=pytest.mark.long), (3, 64)])
def test_several_processes_write_the_bytes_of_one(through_files, weights, tmp_path, processes, batch):
    """The same bytes of features: so every count and every sum that a metric makes of them is the same, too."""
    command = [sys.executable, "-m", "onestep", *observation(weights, tmp_path, batch=batch)]
    command += ["--processes", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (through_files / path.name).read_bytes(), path
    assert len(list(tmp_path.iterdir())) == 3


def test_processes_share_whole_calls():
    shares = [places(600, rank=rank, world=2) for rank in range(2)]
    assert shares == [[*range(256), *range(512, 600)], [*range(256, 512)]]
    assert places(10, rank=0, world=1) == [*range(10)]
    with pytest.raises(ValueError, match="processes: got 2, expected at most 1"):
        places(256, rank=0, world=2)


def test_the_grid_holds_the_first_images(through_files):
    grid, whole = (read_arrays(through_files / name) for name in ("grid.npz", f"{SEEDS}.npz"))
    assert grid.about == whole.about
    assert grid.about["subject"] == {"model": "d2o@64", "sampler": "quick", "seeds": SEEDS}
    assert grid.arrays["seeds"].tolist() == list(range(10, 138))
    for name, array in grid.arrays.items():
        np.testing.assert_array_equal(array, whole.arrays[name][:128])
    assert whole.arrays["pixels"].astype(float).std() > 10


def rows_of_the_call(pixels: torch.Tensor) -> Features:
    """How many images came with each: what must not depend on how they come."""
    features = torch.full((len(pixels), 1), float(len(pixels)))
    return Features(features=features, probabilities=pixels.double().mean(dim=(2, 3)))


@pytest.mark.parametrize("batch", [1, 7, 256, 300, 1000])
def test_a_network_sees_calls_of_one_size(batch):
    pixels = torch.randint(256, (600, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    passed = extract([rows_of_the_call, rows_of_the_call], pixels.split(batch))
    whole = extract([rows_of_the_call], [pixels])
    assert (passed.images, passed.pixels_sha256) == (600, whole.pixels_sha256)
    for arrays in passed.arrays:
        assert arrays["features"].ravel().tolist() == [256.0] * 512 + [88.0] * 88
        np.testing.assert_array_equal(arrays["probabilities"], whole.arrays[0]["probabilities"])


def order_in_memory(pixels: torch.Tensor) -> Features:
    """How the numbers lie in memory: what must not depend on how they come, either."""
    return Features(features=torch.tensor([pixels.stride()] * len(pixels)).float(), probabilities=None)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_sees_one_order_in_memory(channels):
    named = torch.zeros(300, channels, 4, 4, dtype=torch.uint8)
    innermost = torch.zeros(300, 4, 4, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
    for pixels in (named, innermost):
        for batch in (7, 64, 300):
            found = extract([order_in_memory], pixels.split(batch)).arrays[0]["features"]
            assert (found == [16 * channels, 16, 4, 1]).all()


def test_grey_among_colour_is_repeated():
    grey, colour = torch.ones(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    passed = extract([rows_of_the_call], [grey, colour, grey])
    assert passed.arrays[0]["probabilities"].tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]
    assert extract([rows_of_the_call], [grey, grey]).arrays[0]["probabilities"].shape == (2, 1)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="found no images"):
        extract([rows_of_the_call], [])
