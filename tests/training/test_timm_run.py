"""A run whose discriminator looks through a network of timm: one process and two, with a projection for each."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

_NAME = "test_efficientnet.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file of a small network of timm."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_file(timm.create_model(_NAME, pretrained=False).state_dict(), folder / "eye.safetensors")
    return folder / "eye.safetensors"


def _train(bench, weights, folder, *options):
    discriminator = {
        "name": "projected",
        "backbones": ["eye"],
        "channels": 4,
        "resolution": 64,
        "batch_norm": "probed",
        "projection": "per_rank",
    }
    document = bench.document("digits_d2o", discriminator=discriminator, timm={"eye": _NAME}, images=64, snapshots=[64])
    arguments = bench.arguments(document, state=folder / "state", output=folder / "runs")
    at = arguments.index("--backbone")
    arguments[at + 1] = f"eye={weights}"
    bench.run([*arguments, *options])
    (snapshot,) = (folder / "runs/digits_d2o/snapshots").iterdir()
    return load_file(snapshot), json.loads((folder / "runs/digits_d2o/summary.json").read_text())


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_it_trains_to_the_end(bench, weights, tmp_path, processes):
    published, summary = _train(bench, weights, tmp_path, "--processes", str(processes))
    assert summary["world_size"] == processes
    assert published and all(torch.isfinite(tensor).all() for tensor in published.values())
