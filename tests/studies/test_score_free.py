"""Density ratios against scores: each verdict of the rule, what a training costs, the figure, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from arms_files import IMAGES, OPTIONS, SEEDS, arms_of, log, measure
from matplotlib.figure import Figure

from onestep.files import write_json
from onestep.studies.score_free import ScoreFree

SCORE = {"name": "variational_score", "updates": 5}
OBJECTIVES = {"Diff-Instruct": SCORE, "D2O": {"name": "d2o"}}
SIZES = {"Diff-Instruct": 400, "JS": 50, "KL": 50, "D2O": 900}


def around(*values, spread=0.01):
    """Return the curves of three training seeds around one."""
    return [[factor * each for each in values] for factor in (1 - spread, 1.0, 1 + spread)]


GOOD, EQUAL, BAD, WIDE = around(9, 4, 2), around(9, 5, 2.02), around(9, 6, 4), around(9, 7, 4.5, spread=0.6)
CASES = {
    "confirmed": {"Diff-Instruct": GOOD, "JS": EQUAL, "KL": BAD},
    "contradicted": {"Diff-Instruct": GOOD, "JS": BAD, "KL": BAD},
    "not confirmed": {"Diff-Instruct": GOOD, "JS": BAD, "KL": WIDE},
}


BESIDE = (("pr", "recall", 0.5), ("is", "inception_score", 8.0))


def written(folder, curves, *, images=IMAGES, sizes=SIZES, beside=()):
    """Write all that a study reads of three trainings an arm, and of the teacher; return arms and files.

    `beside` are metric, value and level of what is measured beside the distance.
    """
    arms, files = arms_of(list(curves)), {}
    for label, group in curves.items():
        for seed, (run, values) in enumerate(zip(arms[label], group, strict=True)):
            files[f"fd.{run}"] = measure(folder, run, values, images=images)
            for metric, value, level in beside:
                shown = {"metric": metric, "value": value, "better": "higher", "images": images}
                files[f"{metric}.{run}"] = measure(folder, run, [level + 0.1 * seed] * 3, **shown)
            records = [{"images_seen": n, "losses": {"generator": 1.0}, "memory_mib": 100 + n // 100} for n in images]
            files[f"log.{run}"] = log(folder, run, records)
            files[f"summary.{run}"] = [folder / f"{run}.summary.json"]
            summary = {"run": run, "parameters": 200, "seconds": 8.0, "images_seen": images[-1]}
            networks = {"networks": {"generator": 200, "other": sizes[label]}} if sizes else {}
            write_json(files[f"summary.{run}"][0], summary | networks)
            files[f"run.{run}"] = [folder / f"{run}.yaml"]
            objective = OBJECTIVES.get(label, {"name": "edm"})
            files[f"run.{run}"][0].write_text(yaml.safe_dump({"run": run, "objective": objective}))
    for metric, value, _ in (("fd", "frechet", None), *beside):
        files[f"{metric} of the teacher"] = [folder / f"{metric}.teacher.{block}.json" for block in SEEDS]
        for block, path in zip(SEEDS, files[f"{metric} of the teacher"], strict=True):
            write_json(path, {"model": "edm", "seeds": block, "values": {value: 1.5}, "better": {value: "lower"}})
    return arms, files


def studied(arms, **options):
    """Return the study of these arms."""
    options = {**OPTIONS, **options}
    teacher = {"teacher": "edm", "teacher_sampler": "heun"}
    return ScoreFree(arms=arms, ratio=("JS", "KL"), score="Diff-Instruct", **teacher, **options)


def drawn(found):
    """Return a study's figure, drawn."""
    figure = Figure()
    found.draw(figure)
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("case", CASES)
def test_each_verdict(tmp_path, case):
    arms, files = written(tmp_path, CASES[case])
    study = studied(arms)
    assert set(study.observes()) == set(files)
    found = study.conclude(files)
    assert found.verdict == case
    assert (found.numbers["JS.gap"] > 2) is (case != "confirmed")
    fewer = arms | {"JS": arms["JS"][:2]}
    assert studied(fewer).conclude(files).verdict == "undecided"


def test_values_and_costs_are_beside_the_steps_to_a_threshold(tmp_path):
    arms, files = written(tmp_path, {**CASES["confirmed"], "D2O": GOOD}, beside=BESIDE)
    shown = {"recall": "pr.recall", "beside": ("is.inception_score",)}
    # An arm that does not decide may have fewer training seeds.
    study = studied(arms | {"D2O": arms["D2O"][:1]}, samplers={"D2O": "other"}, **shown)
    found = study.conclude(files)
    assert found.verdict == "confirmed" and study.observes().keys() < files.keys()
    # The threshold is 1.5 x 2; the score arm reaches it between its last two snapshots, the arm KL never.
    assert found.numbers["threshold"] == pytest.approx(3.0)
    assert 2_000 < found.numbers["Diff-Instruct.images_until"] < found.numbers["JS.images_until"] < 4_000
    assert (found.numbers["JS.reached"], found.numbers["KL.reached"]) == (3, 0)
    assert "KL.images_until" not in found.numbers
    expected = {
        "JS.recall.last": 0.6,
        "JS.inception_score.last": 8.1,
        "JS.auxiliary_parameters": 50,
        "JS.memory_mib": 140,
        "JS.seconds_per_1000_images": 2.0,
        "JS.images": 4_000,
        "Diff-Instruct.updates": 5,
        "D2O.updates": 1,
        "teacher.frechet": 1.5,
        "teacher.recall": 1.5,
    }
    assert {name: found.numbers[name] for name in expected} == pytest.approx(expected)
    # The control is the score arm; an arm that trains no other network has no ratio of updates.
    assert found.control["JS.auxiliary_parameters"] == 400 and found.control["D2O.updates"] == 5
    assert found.control["JS.frechet.last"] == pytest.approx(2.0) and "JS.updates" not in found.numbers
    assert found.control.keys() <= found.numbers.keys()
    figure = drawn(found)
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    texts = {each.get_text() for each in figure.legends[0].get_texts()}
    assert {"Diff-Instruct", "JS", "KL", "D2O", "edm, heun"} == texts
    assert found.arrays["D2O.auxiliary_parameters"].tolist() == [900]


def test_each_arm_has_its_own_sampler(tmp_path):
    arms = arms_of(["JS", "KL", "Diff-Instruct", "D2O"])
    observed = studied(arms, samplers={"D2O": "other"}).observes()
    samplers = {label: observed[f"fd.{runs[0]}"].sampler for label, runs in arms.items()}
    assert samplers == {"JS": "one_step", "KL": "one_step", "Diff-Instruct": "one_step", "D2O": "other"}


def test_runs_of_earlier_versions_have_no_sizes(tmp_path):
    arms, files = written(tmp_path, CASES["confirmed"], sizes=None)
    found = studied(arms).conclude(files)
    assert found.verdict == "confirmed" and "JS.auxiliary_parameters" not in found.numbers
    assert len(drawn(found).axes) == 1


def test_what_cannot_be_compared_is_refused(tmp_path):
    arms, files = written(tmp_path, CASES["confirmed"])
    _, shorter = written(tmp_path / "short", {"JS": EQUAL}, images=(500, 1_000, 2_000))
    with pytest.raises(ValueError, match="^arms.JS: got 2000 images, expected 4000"):
        studied(arms).conclude({**files, **{key: value for key, value in shorter.items() if "teacher" not in key}})
    for options, part in (
        ({"ratio": ("none",)}, "'none'"),
        ({"ratio": ("JS", "Diff-Instruct")}, "^ratio: "),
        ({"samplers": {"none": "other"}}, "'none'"),
        ({"teacher": None}, "teacher_sampler"),
    ):
        with pytest.raises(ValueError, match=part):
            dataclasses.replace(studied(arms), **options)
