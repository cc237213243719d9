"""Tables hold the numbers of `onestep evaluate` on the same images, to the last digit."""

from __future__ import annotations

import json

import pytest
import torch

from onestep.cli import main
from onestep.files import read_json

METRICS = {"frechet": {}, "inception_score": {"splits": 2}, "precision_recall": {"neighbours": 3}}


@pytest.fixture
def one_thread():
    """As many threads as the pipeline's jobs have: a sum over few images rounds differently with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_table_holds_the_numbers_of_evaluate_on_its_first_block(finished, tmp_path):
    results = finished.work / "results"
    (row,) = (row for row in read_json(results / "tables/digits.json") if row["run"] == "digits_d2o")
    images = results / "samples" / row["model"] / row["sampler"] / "0-31.npz"
    (weights,) = (results / "runs/digits_metric/snapshots").glob("*.safetensors")
    options = ["--images", str(images), "--reference", str(results / "data/digits.zip"), "--weights", str(weights)]
    options += ["--features", '{"name": "classifier"}', "--output", str(tmp_path / "found.json"), "--metrics"]
    assert main(["evaluate", *options, *(json.dumps({"name": name, **more}) for name, more in METRICS.items())]) == 0
    found = read_json(tmp_path / "found.json")["values"]
    columns = {"fd": "frechet", "is": "inception_score", "precision": "precision", "recall": "recall"}
    assert row["first_block"] == {column: found[value] for column, value in columns.items()}
    assert row["metrics"] == row["mean"] != row["first_block"]
    page = (results / "report/index.html").read_text(encoding="utf-8")
    assert "FD, lower is better over NFE" in page
    assert (results / "tables/digits.svg").read_text(encoding="utf-8").startswith("<svg")
