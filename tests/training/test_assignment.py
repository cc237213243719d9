"""What names a run's folder."""

from __future__ import annotations

from pathlib import Path

from onestep.training.assignment import Assignment, Inputs, spec_of


def test_the_name_of_a_runs_science_stays_what_it_was():
    digests = {"data": "d", "teacher": None, "backbones": {"b": "e"}}
    assert spec_of({"run": "a", "batch": 4}, digests=digests, code=None) == "a05770b3f2cfb440"
    assert spec_of({"run": "a", "batch": 4}, digests=digests, code="c") == "f5d3edc3eae98ba7"


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
