"""CI's check of the demo's table finds each violation."""

import importlib.util

import pytest

from tiny import REPOSITORY


@pytest.fixture(scope="module")
def violations():
    spec = importlib.util.spec_from_file_location("check_demo", REPOSITORY / ".ci" / "check_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.violations


def table(*, teacher, teacher_in_one, full, frozen):
    values = {
        ("digits_edm", "heun"): teacher,
        ("digits_edm", "one_step"): teacher_in_one,
        ("digits_d2o", "one_step"): full,
        ("digits_d2o_f", "one_step"): frozen,
    }
    return [{"run": run, "sampler": sampler, "metrics": {"fd": fd}} for (run, sampler), fd in values.items()]


def test_each_violation_is_found(violations):
    assert violations(table(teacher=3.1, teacher_in_one=119, full=1.9, frozen=2.3)) == []
    (line,) = violations(table(teacher=3.1, teacher_in_one=119, full=1.9, frozen=6.3))
    assert "above twice the teacher's 3.1" in line
    (line,) = violations(table(teacher=30, teacher_in_one=119, full=1.9, frozen=12))
    assert "above a tenth of the teacher's 119" in line
    (line,) = violations(table(teacher=3.1, teacher_in_one=119, full=2.4, frozen=2.3))
    assert "D2O 2.4 is worse than D2O-F 2.3" in line
