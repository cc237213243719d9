"""The trials' configs plan a whole pipeline each; what they do is committed under docs/trials."""

from __future__ import annotations

import pytest

from onestep.plan import Plan
from onestep.plan.inputs import needed_inputs
from tiny import REPOSITORY

TRIALS = sorted((REPOSITORY / "trials").glob("*.yaml"))


@pytest.mark.parametrize("path", TRIALS, ids=lambda path: path.stem)
def test_a_trial_is_a_whole_config(path):
    plan = Plan.read(path)
    (table,) = plan.experiment.tables.values()
    assert {row.label for row in table.rows} == {"EDM", "D2O-F"}
    assert set(needed_inputs(plan)) == set(plan.experiment.inputs)
    assert plan.experiment.runs["trial_d2o_f"].freeze == ("conv", "proj")


def test_the_shortened_one_says_so():
    assert [path.stem for path in TRIALS] == ["cifar10", "cifar10_cpu"]
    assert "shortened" in Plan.read(TRIALS[1]).experiment.tables["trial"].title
