"""Weights of a further role: who may observe them, and where the workflow finds them."""

from __future__ import annotations

from typing import Any

import pytest

from onestep.config import ConfigError, parse_experiment
from onestep.fingerprint import Fingerprints
from onestep.plan import Plan, study, train
from onestep.plan.progress import intention
from onestep.results import Results, State
from tiny import density_ratio_run, tiny_config

VERIFIER = {"name": "verifier", "sampler": "low", "seeds": "0-63", "dataset": "digits", "features": "digits"}


def config(*, run="ratio", **options) -> dict[str, Any]:
    """Return the tiny config with a run of density ratios, and the study of `run`."""
    found = tiny_config()
    found["runs"]["ratio"] = density_ratio_run(
        found["runs"]["digits_d2o"], ratio={"name": "ratio_unet"}, divergence="reverse_kl"
    )
    found["runs"]["again"] = {**found["runs"]["ratio"], "images": 640}
    found["samplers"]["low"] = {"name": "one_step", "sigma": 2.5}
    found["studies"] = {"pick": {**VERIFIER, "runs": [run], **options}}
    return found


def test_they_are_outputs_of_the_run_and_inputs_of_the_study():
    plan = Plan(experiment=parse_experiment(config()), fingerprints=Fingerprints())
    path = "results/runs/ratio/snapshots/320-ratio.safetensors"
    rules = {rule.name: rule for rule in train.train_rules(plan)}
    assert path in map(str, rules["ratio"].snapshots)
    assert not any("-ratio" in str(each) for each in rules["digits_d2o"].snapshots)
    files = study.study_files(plan, "pick")
    assert list(map(str, files["ratio.ratio"])) == [path]
    assert set(files) == {"real", "images.ratio", "features.ratio", "ratio.ratio"}
    assert intention(plan.experiment, "ratio", results=Results(), state=State()) == "trains ratio to 320 images"


def test_the_code_of_the_study_has_the_ratio_network():
    plan = Plan(experiment=parse_experiment(config()), fingerprints=Fingerprints())
    alone = plan.fingerprints.of_stage("study", [("studies", "verifier")])
    assert study.study_code(plan, "pick") != alone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "digits_d2o"}, ("digits_d2o", "d2o", "ratio")),
        ({"run": "digits_metric"}, ("digits_metric",)),
        ({"runs": ["ratio", "again"]}, ("again of seed 0", "ratio")),
        ({"candidates": [2, 4]}, ("candidates",)),
        ({"seeds": "0-31"}, ("seeds",)),
        ({"weight": "two"}, ("weight",)),
    ],
    ids=["another objective", "a classifier", "one training seed twice", "without one", "too few", "unknown weight"],
)
def test_what_it_refuses_before_any_job(changes, words):
    with pytest.raises(ConfigError) as error:
        parse_experiment(config(**changes))
    line = next(each for each in str(error.value).splitlines() if "studies.pick" in each)
    assert all(word in line for word in words)
