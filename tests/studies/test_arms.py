"""Arms of runs over training seeds: what is read, the numbers of an arm, and the rules that studies share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from arms_files import IMAGES, SEEDS, arms_of, files_of, log, measure
from matplotlib.figure import Figure

from onestep.config.families import expand
from onestep.records import iter_log
from onestep.studies import Log, SnapshotMeasurements
from onestep.studies import _arms as arms
from onestep.studies._arms import Curve
from onestep.studies._arms_figure import drawing

LEVELS = {"on": [[9.0, 6.0, 3.0], [9.5, 6.5, 2.5], [8.5, 5.5, 3.5]], "off": [[8.0, 4.0, 2.0]] * 3}


def curves_of(folder, levels=LEVELS, **options):
    named = arms_of(list(levels))
    files = files_of(folder, levels, **options)
    return arms.read_curves(named, files, metric="fd", value="frechet", seeds=SEEDS)


def curve(*values, images=IMAGES):
    return Curve(run="d2o", images=images, blocks=tuple((each, each) for each in values))


def test_families_patterns_and_names_become_the_runs_of_an_arm():
    study = {"arms": {"all": "d2o", "some": "d2o.*=1", "both": ["other", "d2o"], "none": "gan", "wrong": 3}}
    runs = {"d2o": {"images": 5, "vary": {"seed": [0, 1]}}, "other": {"images": 5}}
    document, problems = expand({"runs": runs, "studies": {"cost": study, "empty": {"arms": []}}})
    family = ["d2o.seed=0", "d2o.seed=1"]
    found = {"all": family, "some": family[1:], "both": ["other", *family], "none": ["gan"], "wrong": 3}
    assert document["studies"] == {"cost": {"arms": found}, "empty": {"arms": []}} and not problems
    assert expand(document)[0] == document


def test_each_metric_of_each_snapshot_is_observed_and_the_logs():
    named = {"on": ("a", "b"), "off": ("c",)}
    found = arms.observe(named, sampler="one_step", seeds=SEEDS, metrics=("fd", "pr"), logs=True)
    assert set(found) == {f"{each}.{run}" for each in ("fd", "pr", "log") for run in "abc"}
    assert found["pr.b"] == SnapshotMeasurements(run="b", sampler="one_step", seeds=SEEDS, metric="pr")
    assert found["log.c"] == Log(run="c")
    own = arms.observe(named, sampler={"on": "chain", "off": "one_step"}, seeds=SEEDS, metrics=("fd",))
    assert (own["fd.a"].sampler, own["fd.c"].sampler) == ("chain", "one_step")


def test_seed_blocks_are_averaged_and_the_deviation_is_that_over_training_seeds(tmp_path):
    curves = curves_of(tmp_path)
    assert [each.last for each in curves["on"]] == pytest.approx([3.0, 2.5, 3.5])
    assert all(each.images == IMAGES for each in curves["on"])
    numbers = arms.numbers_of(curves, value="frechet")
    assert numbers["on.frechet.last"] == pytest.approx(3.0) and numbers["on.seeds"] == 3
    assert numbers["on.frechet.last.deviation"] == pytest.approx(0.5)
    assert numbers["off.frechet.last.deviation"] == pytest.approx(0.0)
    assert arms.mean_curve(curves["on"]).means == pytest.approx((9.0, 6.0, 3.0))
    arrays = arms.arrays_of(curves, value="frechet")
    assert arrays["on.frechet"].shape == (3, len(IMAGES), len(SEEDS))
    np.testing.assert_array_equal(arrays["off.images_seen"], IMAGES)
    assert "off.frechet.last.deviation" not in arms.numbers_of({"off": curves["off"][:1]}, value="frechet")


def test_measurements_that_do_not_fit_are_refused(tmp_path):
    named = {"on": ("a", "b")}
    files = {f"fd.{run}": measure(tmp_path, run, (3.0, 2.0, 1.0)) for run in "ab"}
    read = {"metric": "fd", "value": "frechet", "seeds": SEEDS}
    assert arms.read_curves(named, files, **read)["on"][1].run == "b"
    with pytest.raises(ValueError, match=r"arms.on: .* b .* a"):
        arms.read_curves(named, {**files, "fd.b": files["fd.b"][:4]}, **read)
    with pytest.raises(ValueError, match="20-29"):
        arms.read_curves(named, files, **{**read, "seeds": (*SEEDS, "20-29")})
    with pytest.raises(ValueError, match="recall"):
        arms.read_curves(named, files, **{**read, "value": "recall"})
    with pytest.raises(ValueError, match="lower"):
        arms.read_curves(named, files, better="higher", **read)


@pytest.mark.parametrize(
    ("named", "needed", "part"),
    [({"on": ("a",)}, ("off",), "'off'"), ({"on": ("a", "a")}, (), "twice"), ({"on/off": ("a",)}, (), "slash")],
)
def test_arms_that_lack_something_are_refused(named, needed, part):
    with pytest.raises(ValueError, match=f"^arms.*{part}"):
        arms.check_arms(named, named=needed)


def test_images_until_a_threshold_are_read_between_snapshots():
    falling = curve(16.0, 4.0, 1.0)
    assert falling.images_until(4.0) == pytest.approx(2_000)
    assert falling.images_until(2.0) == pytest.approx(math.sqrt(2_000 * 4_000))
    assert falling.images_until(20.0) == 1_000 and falling.images_until(0.5) == math.inf
    assert curve(5.0, 3.0, 8.0).images_until(4.0) < 2_000


def test_where_two_curves_cross():
    (found,) = arms.crossings(curve(8.0, 2.0, 2.0), curve(4.0, 4.0, 4.0))
    assert found == pytest.approx(math.sqrt(1_000 * 2_000))
    assert arms.crossings(curve(8.0, 7.0, 6.0), curve(4.0, 4.0, 4.0)) == []
    assert len(arms.crossings(curve(8.0, 2.0, 8.0), curve(4.0, 4.0, 4.0))) == 2
    other = curve(4.0, 4.0, images=(1_000, 4_000))
    assert len(arms.crossings(curve(8.0, 7.0, 2.0), other)) == 1


def test_collapse_is_a_rise_a_lost_recall_or_a_loss_that_is_not_finite(tmp_path):
    assert arms.collapse_of(curve(9.0, 2.0, 6.0)) is None
    assert arms.collapse_of(curve(9.0, 2.0, 6.1)) == "rise"
    assert arms.collapse_of(curve(9.0, 5.0, 4.0), recall=0.09) == "recall"
    assert arms.collapse_of(curve(9.0, 5.0, 4.0), recall=0.11) is None
    assert arms.collapse_of(curve(9.0, 5.0, 4.0), recall=0.5, finite=False) == "loss"
    for lost, finite in ((None, False), (0.5, True)):
        records = [{"images_seen": n, "losses": {"generator": 1.0, "r1": v}} for n, v in ((64, 1.0), (128, lost))]
        (path,) = log(tmp_path, "a", records)
        found = list(iter_log(path))
        assert arms.losses_are_finite(found) is finite and len(found) == 2


def test_differences_in_units_of_their_deviation():
    assert arms.gap((3.0, 5.0), (1.0, 1.0)) == pytest.approx(3 / math.sqrt(2))
    assert arms.gap((1.0, 1.0), (3.0, 5.0)) < 0
    assert arms.gap((1.0, 1.0), (2.0, 2.0)) == -math.inf and arms.gap((1.0, 1.0), (1.0, 1.0)) == 0
    assert arms.gap((1.0,), (2.0, 3.0)) is None


def test_rank_correlation():
    assert arms.spearman((1, 2, 4, 8), (0.1, 0.5, 0.6, 9.0)) == pytest.approx(1)
    assert arms.spearman((1, 2, 3, 4), (4, 3, 2, 1)) == pytest.approx(-1)
    assert arms.spearman((1, 2, 3), (1, 1, 2)) == pytest.approx(math.sqrt(3) / 2)
    assert arms.spearman((1, 2), (1, 1)) is None and arms.spearman((1,), (1,)) is None


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "undecided"), (3, "confirmed")])
def test_a_verdict_needs_three_trainings_of_each_arm(seeds, verdict):
    assert arms.decided({**arms_of(["on"]), **arms_of(["off"], seeds=seeds)}, "confirmed") == verdict


def test_numbers_that_json_cannot_have_are_left_out():
    assert arms.finite({"a": 1.0, "b": None, "c": math.inf, "d": math.nan}) == {"a": 1.0}


@pytest.mark.parametrize("low", [2.0, -1.0])
def test_the_figure_has_a_line_for_each_arm_and_level_on_logarithmic_axes(tmp_path, low):
    curves = curves_of(tmp_path, {**LEVELS, "low": [[9.0, 5.0, low]] * 3})
    figure = Figure()
    drawing(curves, label="fd.frechet", levels={"teacher": 2.5})(figure)
    (axes,) = figure.axes
    assert [each.get_text() for each in axes.get_legend().get_texts()] == ["teacher", *curves]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log" if low > 0 else "linear")


@pytest.mark.parametrize("recall", [None, "pr.recall"])
def test_trainings_have_curves_logs_and_collapses(tmp_path, recall):
    options = {"sampler": "one_step", "metric": "fd", "value": "frechet", "seeds": SEEDS}
    study = arms.StudyOfArms(arms={"on": ("a", "b", "c")}, recall=recall, **options)
    levels = {"a": (9.0, 5.0, 4.0), "b": (9.0, 2.0, 7.0), "c": (9.0, 5.0, 4.0)}
    files = {f"fd.{run}": measure(tmp_path, run, values) for run, values in levels.items()}
    files |= {f"log.{run}": log(tmp_path, run, [{"images_seen": 64, "losses": {"generator": 1.0}}]) for run in levels}
    if recall is not None:
        for run, last in (("a", 0.5), ("b", 0.5), ("c", 0.01)):
            options = {"metric": "pr", "value": "recall", "better": "higher"}
            files[f"pr.{run}"] = measure(tmp_path, run, (0.5, 0.5, last), **options)
    assert set(study.observes()) == set(files)
    found = study.trainings(files)
    assert found.collapses == {"on": (None, "rise", None if recall is None else "recall")}
    assert found.collapsed("on") == (1 if recall is None else 2)
    reasons = found.numbers(value="frechet")
    assert reasons["on.collapsed by rise"] == 1 and ("on.collapsed by recall" in reasons) is (recall is not None)
    assert found.last("on") == pytest.approx((4, 7, 4)) and found.best("on") == pytest.approx((4, 2, 4))
    numbers = found.numbers(value="frechet")
    assert numbers["on.collapsed"] == found.collapsed("on") and numbers["on.frechet.last"] == pytest.approx(5)
