"""Which files of a seed block one job makes: those of which there is nothing yet; and the groups of a cluster."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from onestep.config import parse_experiment
from onestep.fingerprint import Fingerprints
from onestep.plan import Plan, groups, measure, sample
from tiny import selecting_config

BLOCK = "digits_d2o@320/one_step/0-31"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The plan of a working directory without results."""
    monkeypatch.chdir(tmp_path)
    return Plan(experiment=parse_experiment(selecting_config()), fingerprints=Fingerprints())


def made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def together(plan, block=BLOCK, **options):
    return [rule.metrics for rule in measure.measure_rules(plan, **options) if re.fullmatch(rule.blocks, block)]


def test_all_metrics_of_a_block_are_measured_at_once(plan):
    assert together(plan) == [("fd", "is", "pr")]
    assert together(plan, "digits_d2o@160/one_step/0-31") == []  # of a curve: one metric
    assert sum("\\" not in rule.name for rule in measure.measure_rules(plan)) == 1


def test_what_is_measured_already_stays_with_its_own_job(plan):
    made(plan.results.block_metric(BLOCK, "fd"))
    assert together(plan) == [("is", "pr")]
    made(plan.results.block_metric(BLOCK, "pr"))
    assert together(plan) == []
    assert together(plan, asked={"measure_is_and_pr"}) == [("is", "pr")]


def test_images_and_features_are_made_at_once_where_there_is_nothing_of_a_block(plan):
    def observed():
        return [rule.features for rule in sample.observe_rules(plan) if re.fullmatch(rule.blocks, BLOCK)]

    assert observed() == [("digits",)]
    made(plan.results.block_metric(BLOCK, "fd"))
    assert observed() == []
    assert [rule.features for rule in sample.observe_rules(plan, is_any=True)] == [("digits",)]


def test_a_selected_snapshot_and_those_it_is_selected_from_are_in_different_groups(plan):
    def group(**wildcards):
        return groups.of_block(SimpleNamespace(items=wildcards.items))

    chosen = "digits_d2o@best-fd.frechet-one_step-0-31"
    found = {name: group(model=name, sampler="one_step") for name in (chosen, "digits_d2o@320", "digits_d2o@160")}
    assert found["digits_d2o@320"] == found["digits_d2o@160"] == group(block=BLOCK) != found[chosen]
    assert group(dataset="digits", features="digits") is None
    parents = groups.parents(plan)
    assert [parents[each] for each in (found[chosen], group(block=BLOCK))] == ["chosen", "blocks"]
