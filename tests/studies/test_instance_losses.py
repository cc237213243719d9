"""Instance losses: ratios and gains of pairs, crossings, each verdict of the rule, the figure of two panels."""

from __future__ import annotations

import pytest
from arms_files import OPTIONS, arms_of, files_of, log
from matplotlib.figure import Figure

from onestep.studies.instance_losses import InstanceLosses

LABELS = ("CD", "CD-I", "D2O", "D2O + CD")
PLAIN = [[8.0, 4.0, 2.0], [8.4, 4.4, 2.1], [7.6, 3.6, 1.9]]  # the mean last value is 2, so the threshold is 3
SLOW = [[16.0, 8.0, 2.0], [16.4, 8.4, 2.1], [15.6, 7.6, 1.9]]
FAST = [[4.0, 2.5, 2.0], [4.4, 2.6, 2.1], [3.6, 2.4, 1.9]]
BETTER = [[16.0, 12.0, 1.0], [16.4, 12.4, 1.1], [15.6, 11.6, 0.9]]
ALONE = {"CD": [[20.0, 10.0, 5.0]] * 3, "CD-I": [[10.0, 8.0, 7.0]] * 3}


def concluded(folder, added, *, seeds=3, **options):
    curves = {**ALONE, "D2O": PLAIN, "D2O + CD": added}
    curves = {label: group[:seeds] for label, group in curves.items()}
    arms = arms_of(LABELS, seeds=seeds)
    study = InstanceLosses(arms=arms, alone=("CD", "CD-I"), pairs=(("D2O", "D2O + CD"),), **OPTIONS, **options)
    files = files_of(folder, curves)
    records = [{"images_seen": 1.0, "losses": {"generator": 1.0}}]
    files |= {f"log.{run}": log(folder, run, records) for runs in arms.values() for run in runs}
    assert set(files) == set(study.observes())
    return study, study.conclude(files)


@pytest.mark.parametrize(
    ("added", "verdict"),
    [(SLOW, "confirmed"), (FAST, "contradicted"), (BETTER, "contradicted"), ([*SLOW[:2], FAST[2]], "not confirmed")],
)
def test_each_verdict(tmp_path, added, verdict):
    _, found = concluded(tmp_path, added)
    assert found.verdict == verdict
    assert found.numbers["D2O + CD / D2O.threshold"] == pytest.approx(3.0)
    ratios = [found.numbers[f"D2O + CD / D2O.ratio.{seed}"] for seed in (1, 2, 3)]
    assert [ratio > 1 for ratio in ratios] == [group is not FAST[seed] for seed, group in enumerate(added)]
    # Of the second seed without the loss: 4.4 at 2,000 images and 2.1 at 4,000, on logarithmic axes.
    assert 2_000 < found.control["D2O + CD / D2O.images"] < 4_000
    assert 1 < found.control["D2O + CD / D2O.ratio.1"] < 1.3


def test_two_training_seeds_decide_nothing(tmp_path):
    assert concluded(tmp_path, SLOW, seeds=2)[1].verdict == "undecided"


def test_a_threshold_that_is_never_met_is_a_ratio_above_one(tmp_path):
    never = [[16.0, 12.0, 9.0]] * 3
    _, found = concluded(tmp_path, never)
    assert found.verdict == "confirmed"
    assert "D2O + CD / D2O.ratio.1" not in found.numbers and found.numbers["D2O + CD / D2O.gain"] < -2


def test_panel_a_has_its_crossing_and_no_verdict(tmp_path):
    study, found = concluded(tmp_path, SLOW, stated=("The learning rate of CD is 2e-4.",))
    assert found.numbers["CD-I / CD.crossings"] == 1
    assert 2_000 < found.numbers["CD-I / CD.crossing.1"] < 4_000
    assert study.choices[-1] == "The learning rate of CD is 2e-4."
    figure = Figure()
    found.draw(figure)
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    texts = [[each.get_text() for each in axes.get_legend().get_texts()] for axes in figure.axes]
    assert set(texts[0]) == {"CD", "CD-I"} and {"D2O", "D2O + CD"} < set(texts[1])


def test_arms_that_do_not_fit_are_refused():
    arms = {"CD": ("a",), "D2O": ("b", "c"), "D2O + CD": ("d",)}
    with pytest.raises(ValueError, match="CD-I"):
        InstanceLosses(arms=arms, alone=("CD", "CD-I"), pairs=(("D2O", "D2O + CD"),), **OPTIONS)
    with pytest.raises(ValueError, match="2 runs of D2O and 1 of D2O"):
        InstanceLosses(arms=arms, alone=("CD", "CD"), pairs=(("D2O", "D2O + CD"),), **OPTIONS)
