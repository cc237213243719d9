"""The real side of a metric: the dataset's own features, or the reference that its config names."""

from __future__ import annotations

from pathlib import Path

import pytest

from onestep.config import ConfigError, parse_experiment
from onestep.fingerprint import Fingerprints
from onestep.plan import Plan, inputs, measure
from tiny import tiny_config

BLOCK = ("digits_d2o@320", "one_step", "0-31")


def _config(**references):
    config = tiny_config()
    config["inputs"] |= {"stats": {"file": "downloads/stats.npz"}, "batch": {"file": "downloads/batch.npz"}}
    config["datasets"]["digits"]["references"] = references
    return config


def _plan(**references):
    return Plan(experiment=parse_experiment(_config(**references)), fingerprints=Fingerprints())


def _real(plan, metric):
    (path,) = measure.metric_files(plan, *BLOCK, metric)["real"]
    return str(path)


def test_statistics_are_used_as_they_are_and_images_are_extracted():
    plan = _plan(fd="stats", pr="batch")
    assert _real(plan, "fd") == "results/inputs/stats/stats.npz"
    assert _real(plan, "pr") == "results/features/reference/batch.digits.npz"
    assert str(inputs.input(plan, "batch")) == "results/inputs/batch/batch.npz"


def test_without_references_the_dataset_is_its_own():
    for metric in ("fd", "pr", "is"):
        assert _real(_plan(), metric) == "results/features/digits.digits.npz"
    assert _real(_plan(fd="stats"), "pr") == "results/features/digits.digits.npz"


def test_a_metric_without_real_images_needs_none_where_they_may_be_absent():
    generated = Path("results/features/digits_d2o@320/one_step/0-31.digits.npz")
    assert measure.metric_files(_plan(fd="stats"), *BLOCK, "is") == {"generated": [generated]}


class _Wildcards(dict):
    """Names and values, as Snakemake has them."""


def test_files_become_options_that_name_the_published_reference():
    plan, files = _plan(fd="stats"), {"generated": "g.npz", "real_pixels": "a b.zip"}
    model = _Wildcards(model=BLOCK[0], sampler=BLOCK[1], seeds=BLOCK[2], metric="fd")
    options = "--generated g.npz --real-pixels 'a b.zip'"
    assert measure.metric_file_options(plan, model, files) == f"{options} --real-input stats"
    assert measure.metric_file_options(plan, _Wildcards(dataset="digits", metric="is"), files) == options


def test_a_reference_can_be_checked_against_the_datasets_features():
    plan = _plan(fd="stats")
    files = measure.reference_files(plan, "digits", "fd")
    assert str(files["generated"]) == "results/features/digits.digits.npz"
    assert str(files["real"]) == "results/inputs/stats/stats.npz"
    with pytest.raises(ValueError) as refused:
        measure.reference_files(plan, "digits", "pr")
    assert "datasets.digits.references" in str(refused.value)


def test_references_do_not_prepare_the_dataset_again():
    assert _plan(fd="stats").options("datasets", "digits") == _plan().options("datasets", "digits")


@pytest.mark.parametrize("references", [{"fd": "statz"}, {"fid": "stats"}, {"is": "stats"}, {"fd": 3}])
def test_references_to_nothing_are_refused(references):
    ((metric, _),) = references.items()
    with pytest.raises(ConfigError) as refused:
        parse_experiment(_config(**references))
    assert f"datasets.digits.references.{metric}" in str(refused.value)
