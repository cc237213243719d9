"""The trials' configs plan a whole pipeline each; what they do is committed under docs/trials."""

from __future__ import annotations

import pytest

from onestep.plan import Plan
from onestep.plan.inputs import needed_inputs
from tiny import REPOSITORY

TRIALS = sorted((REPOSITORY / "trials").glob("cifar10*.yaml"))


@pytest.mark.parametrize("path", TRIALS, ids=lambda path: path.stem)
def test_a_trial_is_a_whole_config(path):
    plan = Plan.read(path)
    rows = [row for table in plan.experiment.tables.values() for row in table.rows]
    assert {row.run.partition(".")[0] for row in rows} >= {"trial_edm", "trial_d2o_f"}
    assert set(needed_inputs(plan)) == set(plan.experiment.inputs)
    frozen = [run for name, run in plan.experiment.runs.items() if name.partition(".")[0] == "trial_d2o_f"]
    assert {run.freeze for run in frozen} == {("conv", "proj")}


def test_the_shortened_one_says_so():
    (path,) = (path for path in TRIALS if path.stem == "cifar10_cpu")
    assert "shortened" in Plan.read(path).experiment.tables["trial"].title
