"""Which file is the real side of a number: the dataset's own features, or what its config names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from onestep.config import ConfigError, parse_experiment
from onestep.fingerprint import Fingerprints
from onestep.plan import Plan
from tiny import tiny_config


def _config(**references):
    config = tiny_config()
    config["inputs"] |= {"stats": {"file": "downloads/stats.npz"}, "batch": {"file": "downloads/batch.npz"}}
    config["datasets"]["digits"]["references"] = references
    return config


def _plan(**references):
    return Plan(parse_experiment(_config(**references)), source="config.yaml", fingerprints=Fingerprints())


def _asked(**wildcards):
    return SimpleNamespace(model="digits_d2o@320", dataset="digits", **wildcards)


def test_statistics_are_taken_as_they_are_and_images_are_extracted():
    plan = _plan(fd="stats", pr="batch")
    assert plan.metrics.real(_asked(metric="fd")) == "results/inputs/stats/stats.npz"
    assert plan.metrics.real(_asked(metric="pr")) == "results/features/reference/batch.digits.npz"
    assert plan.references.images(SimpleNamespace(input="batch")) == "results/inputs/batch/batch.npz"


def test_without_references_the_dataset_is_its_own():
    for metric in ("fd", "pr", "is"):
        assert _plan().metrics.real(_asked(metric=metric)) == "results/features/digits.digits.npz"
    assert _plan(fd="stats").metrics.real(_asked(metric="pr")) == "results/features/digits.digits.npz"


def test_a_metric_without_real_images_asks_for_none_where_they_may_be_absent():
    asked = _asked(metric="is", sampler="one_step", seeds="0-31")
    generated = "results/features/digits_d2o@320/one_step/0-31.digits.npz"
    assert _plan(fd="stats").metrics.real(asked) == _plan().metrics.generated(asked) == generated


def test_a_reference_can_be_checked_against_the_datasets_features():
    plan = _plan(fd="stats")
    assert plan.references.own(_asked(metric="fd")) == "results/features/digits.digits.npz"
    assert plan.references.published(_asked(metric="fd")) == "results/inputs/stats/stats.npz"
    with pytest.raises(ValueError, match=r"datasets\.digits\.references: names no reference for pr"):
        plan.references.published(_asked(metric="pr"))


def test_references_do_not_prepare_the_dataset_again():
    assert _plan(fd="stats").datasets.options(_asked()) == _plan().datasets.options(_asked())


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({"fd": "statz"}, "references.fd: found the text 'statz', expected one of the inputs: digits, stats, batch"),
        ({"fid": "stats"}, "references.fid: found the text 'fid', expected one of the metrics that compare with real"),
        ({"is": "stats"}, "references.is: found the text 'is', expected one of the metrics that compare with real"),
        ({"fd": 3}, "references.fd: found 3, expected text"),
    ],
)
def test_references_to_nothing_are_refused(references, message):
    with pytest.raises(ConfigError, match=f"datasets.digits.{message}"):
        parse_experiment(_config(**references))
