"""Steps against the distance to a one-step student: what is compared with what, each verdict, the files."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from onestep.files import read_json, write_json
from onestep.studies import Measurements
from onestep.studies._run import study as run_study
from onestep.studies.relative_distance import RelativeDistance

SEEDS = ("0-9", "10-19")
STUDENTS = ("one.seed=0", "one.seed=1", "one.seed=2")
ARMS = {
    "1": STUDENTS,
    **{str(n): tuple(f"chain_{n}.seed={k}" for k in range(3)) for n in (2, 3, 4)},
    "m=0.2": tuple(f"middle.seed={k}" for k in range(3)),
}
SAMPLERS = {"1": "one_step", "2": "two", "3": "three", "4": "four", "m=0.2": "two_02"}
OPTIONS = {"samplers": SAMPLERS, "absolute": "fd", "relative": "rel_fd", "floor": "floor_fd", "seeds": SEEDS}
# By kind and label the means over three trainings; each training is 0.1 apart, each seed block 0.02.
CASE = {
    "absolute": {"1": 5.0, "2": 5.2, "3": 5.1, "4": 5.4, "m=0.2": 5.0},
    "relative": {"1": 1.0, "2": 2.0, "3": 2.5, "4": 3.0, "m=0.2": 2.2},
    "floor": {"1": 0.3},
}


def study(arms=ARMS, **changes):
    return RelativeDistance(arms=arms, **(OPTIONS | changes))


def measured(folder, case=CASE, *, arms=ARMS, references=None):
    """Write the measurements of a study and return them as its files."""
    files = {}
    for kind, values in case.items():
        for label, mean in ((label, mean) for label, mean in values.items() if label in arms):
            for k, run in enumerate(arms[label]):
                students = arms["1"]
                other = {
                    "absolute": None,
                    "relative": students[(k + (label == "1")) % len(students)],
                    "floor": run,
                }[kind]
                paths = files[f"{label}.{kind}.{run}"] = []
                for index, seeds in enumerate(SEEDS):
                    at = "100-109" if kind == "floor" else seeds
                    reference = {"dataset": "digits", "images": 10, "sha256": "d"}
                    if other is not None:
                        reference = {"model": f"{other}@64", "sampler": "one_step", "seeds": at, "images": 10}
                    reference = (references or {}).get(kind, reference)
                    value = mean + 0.1 * (k - (len(arms[label]) - 1) / 2) + 0.02 * (index - 0.5)
                    record = {"model": f"{run}@64", "seeds": seeds, "values": {"frechet": value}, "images": 10}
                    paths.append(folder / f"{kind}.{run}.{seeds}.json")
                    write_json(paths[-1], record | {"reference": reference})
    return files


def changed(**kinds):
    return {kind: values | kinds.get(kind, {}) for kind, values in CASE.items()}


def test_it_observes_both_distances_of_every_run_and_the_floor_of_students():
    found = study().observes()
    assert len(found) == 2 * 3 * len(ARMS) + len(STUDENTS)
    one = Measurements(model="chain_3.seed=1", sampler="three", seeds=SEEDS, metric="rel_fd")
    assert found["3.relative.chain_3.seed=1"] == one
    floor = Measurements(model="one.seed=2", sampler="one_step", seeds=SEEDS, metric="floor_fd")
    assert found["1.floor.one.seed=2"] == floor


def test_numbers_are_means_and_deviations_over_training_seeds(tmp_path):
    found = study().conclude(measured(tmp_path))
    for label, kind in itertools.product(("2", "3", "4", "m=0.2"), ("absolute", "relative")):
        assert found.numbers[f"{label}.{kind}"] == pytest.approx(CASE[kind][label])
        assert found.numbers[f"{label}.{kind}.deviation"] == pytest.approx(0.1)
        assert found.arrays[f"{label}.{kind}"].shape == (3, 2)
    assert found.numbers["spearman"] == 1 and found.numbers["absolute_ratio"] == pytest.approx(5.4 / 5.0)
    assert found.control["relative"] == pytest.approx(1.0) and found.control["floor"] == pytest.approx(0.3)
    assert found.control["relative.deviation"] == pytest.approx(0.1)
    assert found.numbers["2.images_seen"] == 64
    np.testing.assert_allclose(found.arrays["floor"], [0.2, 0.3, 0.4])


VERDICTS = {
    "confirmed": CASE,
    "not confirmed: it does not grow": changed(relative={"3": 1.9, "4": 1.8}),
    "not confirmed: two steps are as near as another student": changed(relative={"2": 1.2}),
    "not confirmed: one fits worse": changed(absolute={"4": 7.6}),
    "contradicted": changed(relative={"2": 1.0, "3": 1.05, "4": 1.1}),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_each_verdict(tmp_path, case):
    assert study().conclude(measured(tmp_path, VERDICTS[case])).verdict == case.partition(":")[0]


@pytest.mark.parametrize(("label", "count"), [("1", 2), ("3", 2), ("1", 1)])
def test_fewer_training_seeds_decide_nothing(tmp_path, label, count):
    arms = {each: ARMS[each] for each in ("1", "2", "3")} | {label: ARMS[label][:count]}
    found = study(arms).conclude(measured(tmp_path, arms=arms))
    assert found.verdict == "undecided"
    assert ("relative" in found.control) == (label != "1" or count > 1)


def test_one_number_of_steps_has_no_trend(tmp_path):
    arms = {label: ARMS[label] for label in ("1", "2")}
    found = study(arms).conclude(measured(tmp_path, arms=arms))
    assert found.verdict == "undecided" and "spearman" not in found.numbers


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("absolute", {"model": "one.seed=0@64", "sampler": "one_step", "seeds": "0-9"}),
        ("relative", {"dataset": "digits", "images": 10, "sha256": "d"}),
        ("relative", {"model": "other@64", "sampler": "one_step", "seeds": "0-9", "images": 10}),
        ("relative", {"model": "one.seed=0@64", "sampler": "one_step", "seeds": "50-59", "images": 10}),
        ("floor", {"model": "one.seed=0@64", "sampler": "one_step", "seeds": "0-9", "images": 10}),
    ],
)
def test_a_metric_that_compares_with_something_else_is_refused(tmp_path, kind, reference):
    arms = {label: ARMS[label][:2] for label in ("1", "2")}
    with pytest.raises(ValueError, match="expected one to .*Fix: `against` of metrics"):
        study(arms).conclude(measured(tmp_path, arms=arms, references={kind: reference}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {label: ARMS[label] for label in ("2", "3")}}, "'1'"),
        ({"arms": {"1": STUDENTS}}, "2 or more"),
        ({"arms": ARMS | {"two": STUDENTS}}, "'two'"),
        ({"arms": ARMS | {"5": STUDENTS}}, "samplers: .*'5'"),
        ({"seeds": ()}, "seeds"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)


def test_the_four_files_are_the_same_bytes_each_time(tmp_path):
    files = measured(tmp_path)
    block = json.loads(json.dumps({"name": "relative_distance", "arms": ARMS, **OPTIONS}))
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        run_study(study=block, name="rel", files=files, output=folder)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1] and set(written[0]) == {"rel.npz", "rel.json", "rel.svg", "rel.md"}
    assert read_json(tmp_path / "a" / "rel.json")["verdict"] == "confirmed"
