"""What names a run's folder."""

from __future__ import annotations

from pathlib import Path

from onestep.config.identity import changes, former_spec_of, spec_of
from onestep.training.assignment import Assignment, Inputs

DIGESTS = {"data": "d", "teacher": None, "backbones": {"b": "e"}}


def test_the_name_of_a_runs_science_stays_what_it_was():
    assert former_spec_of({"run": "a", "batch": 4}, digests=DIGESTS, code=None) == "a05770b3f2cfb440"
    assert former_spec_of({"run": "a", "batch": 4}, digests=DIGESTS, code="c") == "f5d3edc3eae98ba7"
    assert spec_of({"run": "a", "batch": 4}, digests=DIGESTS, code=None) == "9ab512199418d4ea"


def test_the_name_of_a_run_its_length_and_its_snapshots_are_no_science():
    run = {"run": "a", "batch": 4, "images": 8, "snapshot_every": 4, "snapshots": [4, 8], "non_finite_limit": 0.1}
    longer = {"run": "b", "batch": 4, "images": 16, "snapshot_every": 2, "snapshots": [2, 16], "non_finite_limit": 0.2}
    assert spec_of(run, digests=DIGESTS, code=None) == spec_of(longer, digests=DIGESTS, code=None)
    assert changes(run, longer) == []
    assert spec_of({**run, "batch": 8}, digests=DIGESTS, code=None) != spec_of(run, digests=DIGESTS, code=None)
    assert changes({**run, "objective": {"r1_gamma": 1e-4}}, {**longer, "objective": {"r1_gamma": 1e-3}}) == [
        "objective.r1_gamma changed (0.0001 -> 0.001)"
    ]
    cosine = {"optimizers": {"generator": {"schedule": {"name": "cosine"}}}}
    assert changes({**run, **cosine}, {**longer, **cosine}) == ["images changed (8 -> 16)"]


def test_only_where_asked_does_the_code_count(tmp_path):
    (tmp_path / "run.yaml").write_text("run: a\nbatch: 4\n")
    (tmp_path / "d.zip").write_text("data")
    inputs = Inputs(run=tmp_path / "run.yaml", data=tmp_path / "d.zip")
    free, bound = (
        Assignment(inputs=inputs, state=Path("state"), code_in_spec=bound, state_seconds=1.0) for bound in (False, True)
    )
    assert free.spec("x") == free.spec("y") and bound.spec("x") != bound.spec("y")
    assert bound.folder("x") == Path("state/a") / bound.spec("x")
    assert free.document() == {"run": "a", "batch": 4}
