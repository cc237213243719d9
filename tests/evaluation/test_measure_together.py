"""Several metrics of a block in one process: the bytes of single processes, each file read once."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from onestep.archive import read_arrays, write_arrays
from onestep.cli import main
from onestep.evaluation import measurement

BLOCK = {"model": "d2o@64", "sampler": "one_step", "seeds": "0-63"}
METRICS = {
    "fd": {"name": "frechet"},
    "pr": {"name": "precision_recall", "neighbours": 3},
    "is": {"name": "inception_score", "splits": 2},
}


@pytest.fixture
def orders(tmp_path):
    """Orders of three metrics, of features with probabilities and those of real images."""
    random = np.random.default_rng(0)
    for name, subject in (("d2o@64/one_step/0-63.two", BLOCK), ("digits.two", {"dataset": "digits"})):
        logits = random.standard_normal((64, 5))
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        about = {"weights_sha256": "a" * 64, "pixels_sha256": name[:1] * 64, "images": 64, "subject": subject}
        arrays = {"features": random.standard_normal((64, 4)), "probabilities": probabilities}
        arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
        write_arrays(tmp_path / "features" / f"{name}.npz", arrays, about=about)
    files = {
        "generated": str(tmp_path / "features/d2o@64/one_step/0-63.two.npz"),
        "real": str(tmp_path / "features/digits.two.npz"),
    }
    return {name: {"metric": block, **files} for name, block in METRICS.items()}


def test_each_file_has_the_bytes_of_a_process_of_its_own_and_features_are_read_once(orders, tmp_path, monkeypatch):
    for name, order in orders.items():
        files = ["--generated", order["generated"], "--real", order["real"]]
        words = ["--metric", json.dumps(order["metric"]), "--name", name, *files]
        assert main(["measure", *words, "--output", str(tmp_path / f"alone.{name}.json")]) == 0
    read = Counter()

    def counted(path, *arguments, **options):
        read[path.name] += 1
        return read_arrays(path, *arguments, **options)

    monkeypatch.setattr(measurement, "read_arrays", counted)
    assert main(["measure", "--each", json.dumps(orders), "--output", str(tmp_path / "together")]) == 0
    assert read == {"0-63.two.npz": 1, "digits.two.npz": 1}
    for name in METRICS:
        assert (tmp_path / f"together.{name}.json").read_bytes() == (tmp_path / f"alone.{name}.json").read_bytes()


def test_a_metric_that_fails_leaves_the_others(orders, tmp_path, capsys):
    orders["is"]["metric"]["splits"] = 1000
    assert main(["measure", "--each", json.dumps(orders), "--output", str(tmp_path / "x")]) == 1
    assert {path.name for path in tmp_path.glob("x.*")} == {"x.fd.json", "x.pr.json"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onestep measure: is: ") and orders["is"]["generated"] in line


@pytest.mark.parametrize("words", [[], ["--name", "fd"], ["--each", "{}", "--name", "fd"]])
def test_one_metric_or_several(words, tmp_path, capsys):
    assert main(["measure", *words, "--output", str(tmp_path / "x.json")]) == 1
    assert not list(tmp_path.iterdir()) and len(capsys.readouterr().err.splitlines()) == 1
