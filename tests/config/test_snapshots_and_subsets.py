"""Snapshots at stated counts, subsets of a dataset, a control for freezing, and arms of studies in config.yaml."""

from __future__ import annotations

import pytest
import yaml
from changed_demo import D2O, TAKEN_AWAY, demo_with, problems

from onestep.config import experiment_document, parse_experiment, run_document
from onestep.config.identity import spec_of
from onestep.config.run import run_of


def document_with(changes, run="digits_d2o"):
    return run_document(parse_experiment(demo_with(changes)), run)


def spec(document):
    return spec_of(document, digests={}, code=None)


def test_stated_counts_are_snapshots_beside_the_regular_ones():
    found = document_with({f"{D2O}.snapshots": [2_000, 200, 10_000]})
    assert found["snapshots"] == [200, 2_000, 10_000, 20_000, 30_000, 40_000]
    assert list(document_with({})).index("snapshots") == len(document_with({})) - 1
    changes = {f"{D2O}.snapshot_every": TAKEN_AWAY, f"{D2O}.snapshots": [500]}
    assert document_with(changes)["snapshots"] == [500, 40_000]


def test_snapshots_are_no_science_and_a_config_resolves_to_itself():
    changes = {f"{D2O}.snapshots": [200], f"{D2O}.subset": {"images": 50}, f"{D2O}.freeze_seed": 1}
    changes |= {f"{D2O}.freeze": ["conv"]}
    experiment = parse_experiment(demo_with(changes))
    assert parse_experiment(experiment_document(experiment)) == experiment
    document = run_document(experiment, "digits_d2o")
    assert run_of(yaml.safe_load(yaml.safe_dump(document))).run == experiment.runs["digits_d2o"]
    plain = document_with({})
    assert spec(document_with({f"{D2O}.snapshots": [200]})) == spec(plain)
    assert not {"subset", "freeze_seed", "observe"} & {*plain, *plain["objective"]}
    for key, value in (("subset", {"images": 50}), ("freeze_seed", 1)):
        assert spec(document_with({f"{D2O}.freeze": ["conv"], f"{D2O}.{key}": value})) not in (
            spec(plain),
            spec(document_with({f"{D2O}.freeze": ["conv"]})),
        )
    assert document_with({f"{D2O}.subset": {"images": 50}})["subset"] == {"images": 50, "seed": 0}


def test_a_run_yaml_without_snapshots_has_the_regular_ones():
    document = document_with({})
    del document["snapshots"]
    assert run_of(document).snapshots == run_of(document).run.snapshots == (10_000, 20_000, 30_000, 40_000)


WRONG = {
    "snapshots": ([50_000], "50000"),
    "snapshots[0]": (["a"], "whole number"),
    "subset.images": ({"images": 0}, "above 0"),
    "subset.size": ({"size": 5, "images": 5}, "unknown key"),
    "freeze_seed": (3, "freeze"),
}


@pytest.mark.parametrize("key", WRONG)
def test_what_cannot_be_is_refused_at_its_place(key):
    value, part = WRONG[key]
    name = key.partition(".")[0].partition("[")[0]
    (line,) = problems(demo_with({f"{D2O}.{name}": value, "runs.digits_d2o_f": TAKEN_AWAY, "tables": {}}))
    assert line.startswith(f"config.yaml: {D2O}.{key}: ") and part in line


def test_a_snapshot_before_the_first_step_is_refused():
    changes = {f"{D2O}.snapshots": [10], "runs.digits_d2o_f": TAKEN_AWAY, "tables": {}}
    (line,) = problems(demo_with(changes))
    assert line.startswith(f"config.yaml: {D2O}.snapshots: ") and "64" in line


STUDY = {
    "name": "freeze_levels",
    "arms": {"0": "digits_d2o", "1": "digits_d2o_f", "random": "digits_d2o"},
    **{"trained": "0", "frozen": "1", "at_random": "random", "sampler": "one_step", "metric": "fd"},
    **{"value": "frechet", "seeds": ["0-99"]},
}


def test_arms_of_a_study_are_families_and_one_run_alone():
    changes = {"runs.digits_d2o_f.vary": {"seed": [0, 1]}, "studies": {"levels": STUDY}}
    experiment = parse_experiment(demo_with(changes))
    arms = {"0": ("digits_d2o",), "1": ("digits_d2o_f.seed=0", "digits_d2o_f.seed=1"), "random": ("digits_d2o",)}
    assert experiment.studies["levels"].options["arms"] == arms
    assert parse_experiment(experiment_document(experiment)) == experiment


ARMS = {
    "an unknown run": ({"1": "digits_gan"}, "digits_gan"),
    "a training seed twice": ({"1": ["digits_d2o", "digits_d2o_f"]}, "seed"),
    "no runs": ({"1": []}, "1"),
    "a run twice": ({"1": ["digits_d2o_f", "digits_d2o_f"]}, "twice"),
    "a number": ({"1": 3}, "list"),
}


@pytest.mark.parametrize("case", ARMS)
def test_arms_that_compare_nothing_are_refused(case):
    arms, part = ARMS[case]
    study = STUDY | {"arms": STUDY["arms"] | arms}
    lines = problems(demo_with({"studies": {"levels": study}}))
    assert lines and all(line.startswith("config.yaml: studies.levels") and part in line for line in lines)


def test_a_study_may_name_no_snapshot_that_is_not_made():
    few = {key: STUDY[key] for key in ("sampler", "metric", "value", "seeds")}
    few |= {"name": "few_images", "arms": {"0": "digits_d2o", "1": "digits_d2o_f"}, "pairs": [["0", "1"]]}
    few |= {"at": 2_000, "dataset": "digits"}
    lines = problems(demo_with({"studies": {"few": few}}))
    assert len(lines) == 2 and all(line.startswith("config.yaml: studies.few: ") and "2000" in line for line in lines)
    both = {f"runs.{run}.snapshots": [2_000] for run in ("digits_d2o", "digits_d2o_f")}
    assert parse_experiment(demo_with({"studies": {"few": few}, **both})).studies["few"].name == "few_images"
