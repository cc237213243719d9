"""Studies that compare methods: each verdict, costs, ranks and flattery, figures, what is refused."""

from __future__ import annotations

import pytest
from arms_files import IMAGES, OPTIONS, arms_of, log, measure
from matplotlib.figure import Figure

from onestep.files import write_json
from onestep.studies.freezing_by_network import FreezingByNetwork
from onestep.studies.freezing_elsewhere import FreezingElsewhere
from onestep.studies.order_of_methods import OrderOfMethods
from onestep.studies.without_gan import WithoutGan


def around(level, spread=0.01):
    """Return the curves of three training seeds that end around a level."""
    return [[4 * factor * level, 2 * factor * level, factor * level] for factor in (1 - spread, 1.0, 1 + spread)]


def written(folder, curves, *, metric="fd", images=None, seconds=8.0):
    """Write the measurements, logs and summaries of three trainings an arm; return arms and files."""
    arms, files = arms_of(list(curves)), {}
    for label, group in curves.items():
        for run, values in zip(arms[label], group, strict=True):
            own = (images or {}).get(label, IMAGES)
            files[f"{metric}.{run}"] = measure(folder, run, values, metric=metric, images=own)
            files[f"log.{run}"] = log(folder, run, [{"images_seen": n, "losses": {"generator": 1.0}} for n in own])
            files[f"summary.{run}"] = [folder / f"{run}.summary.json"]
            write_json(files[f"summary.{run}"][0], {"run": run, "seconds": seconds, "images_seen": own[-1]})
    return arms, files


def drawn(found):
    """Return a study's figure, drawn."""
    figure = Figure()
    found.draw(figure)
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize(
    ("verdict", "frechet", "kernel"),
    [
        ("confirmed", around(1.01), around(3)),
        ("contradicted", around(2), around(3)),
        ("not confirmed", around(2), around(2.6, spread=0.4)),
    ],
)
def test_a_loss_without_a_gan_matches_or_not(tmp_path, verdict, frechet, kernel):
    arms, files = written(tmp_path, {"D2O": around(1), "FD": frechet, "MMD": kernel})
    study = WithoutGan(arms=arms, gan="D2O", without=("FD", "MMD"), **OPTIONS)
    assert set(study.observes()) == set(files)
    found = study.conclude(files)
    assert found.verdict == verdict
    assert found.numbers["FD.seconds_per_1000_images"] == pytest.approx(2.0)
    assert (found.numbers["FD.gap"] <= 2) == (verdict == "confirmed")
    assert found.control["FD.frechet.last"] == pytest.approx(1.0)
    assert len(drawn(found).axes) == 1


def test_a_low_recall_is_a_collapse(tmp_path):
    curves = {"D2O": around(1), "D2O, frozen": around(1), "A": around(2), "A, frozen": around(2)}
    arms, files = written(tmp_path, curves)
    for label, runs in arms.items():
        for run in runs:
            level = 0.05 if label == "A" else 0.5
            files[f"pr.{run}"] = measure(tmp_path, run, [level] * 3, metric="pr", value="recall", better="higher")
    options = OPTIONS | {"recall": "pr.recall"}
    for study in (
        WithoutGan(arms=arms, gan="D2O", without=("A",), **options),
        FreezingElsewhere(arms=arms, frozen={"A": "A, frozen"}, known="D2O", **options),
    ):
        found = study.conclude({name: files[name] for name in study.observes()})
        assert (found.numbers["A.collapsed"], found.numbers["D2O.collapsed"]) == (3, 0)


def test_methods_of_other_images_are_not_compared(tmp_path):
    arms, files = written(tmp_path, {"D2O": around(1), "FD": around(1)}, images={"FD": (1_000, 2_000, 8_000)})
    with pytest.raises(ValueError, match="arms.FD: got 8000 images, expected 4000"):
        WithoutGan(arms=arms, gan="D2O", without=("FD",), **OPTIONS).conclude(files)


@pytest.mark.parametrize(
    ("verdict", "ratios"),
    [
        ("confirmed", (0.5, 0.6, 1.5)),
        ("contradicted", (1.5, 2.0, 0.5)),
        ("not confirmed", (0.5, 2.0, 1.0)),
        ("not confirmed", (1.01, 0.99, 1.0)),
    ],
)
@pytest.mark.parametrize("kind", [FreezingElsewhere, FreezingByNetwork])
def test_freezing_helps_most_methods_or_few(tmp_path, verdict, ratios, kind):
    curves = {"D2O": around(1), "D2O, frozen": around(0.1)}
    for name, ratio in zip("ABC", ratios, strict=True):
        curves |= {name: around(2), f"{name}, frozen": around(2 * ratio)}
    arms, files = written(tmp_path, curves)
    frozen = {label: f"{label}, frozen" for label in ("D2O", "A", "B", "C")}
    study = kind(arms=arms, frozen=frozen, known="D2O", **OPTIONS)
    found = study.conclude({name: files[name] for name in study.observes()})
    assert found.verdict == verdict
    assert found.numbers["A.frozen ratio"] == pytest.approx(ratios[0])
    assert found.control["A, frozen.frechet.last"] == pytest.approx(2.0)
    assert len(drawn(found).axes) == 1


INNER, OUTER = "inner.frechet", "outer.frechet"


def order_of(folder, by_network, **options):
    """Return the study of arms that are measured in several networks, and its files."""
    files = {}
    for metric, levels in by_network.items():
        arms, own = written(folder, {label: around(level) for label, level in levels.items()}, metric=metric)
        files |= own
    representations = {metric: f"{metric}.frechet" for metric in by_network}
    given = {**OPTIONS, "metric": next(iter(by_network)), "representations": representations}
    return OrderOfMethods(arms=arms, **given, **options), files


@pytest.mark.parametrize(
    ("verdict", "inner", "outer"),
    [
        ("confirmed", {"A": 1, "B": 2, "C": 3}, {"A": 2, "B": 1, "C": 3}),
        ("contradicted", {"A": 1, "B": 2, "C": 3}, {"A": 10, "B": 11, "C": 40}),
        ("not confirmed", {"A": 1, "B": 2, "C": 3}, {"A": 1.001, "B": 1, "C": 3}),
    ],
)
def test_the_order_changes_or_stays(tmp_path, verdict, inner, outer):
    study, files = order_of(tmp_path, {"inner": inner, "outer": outer})
    assert set(study.observes()) == {name for name in files if not name.startswith("summary")}
    found = study.conclude(files)
    assert found.verdict == verdict
    assert [found.numbers[f"{label}.inner.rank"] for label in "ABC"] == [1, 2, 3]
    assert (found.numbers["inner and outer.rank correlation"] == pytest.approx(1.0)) == (verdict == "contradicted")
    assert len(drawn(found).axes) == 1


def test_a_representation_flatters_the_method_that_was_trained_on_it(tmp_path):
    by_network = {"own": {"A": 1, "B": 8, "C": 12}, "apart": {"A": 4, "B": 4, "C": 6}, "far": {"A": 4, "B": 4, "C": 6}}
    study, files = order_of(tmp_path, by_network, trained_on={"A": ("own",)})
    found = study.conclude(files)
    assert found.numbers["A.own to unseen"] == pytest.approx(0.25)
    assert found.control["A.own to unseen"] == pytest.approx(2.0)
    assert "B.own to unseen" not in found.numbers


@pytest.mark.parametrize("study", [WithoutGan, FreezingElsewhere, OrderOfMethods])
def test_options_that_do_not_fit_the_arms_are_refused(study):
    arms = arms_of(["A", "B"])
    wrong = {
        WithoutGan: [{"gan": "A", "without": ("A",)}, {"gan": "X", "without": ("A",)}],
        FreezingElsewhere: [{"frozen": {"A": "B"}, "known": "A"}, {"frozen": {"A": "X"}, "known": "B"}],
        OrderOfMethods: [
            {"representations": {"a": INNER, "b": OUTER}, "trained_on": {"A": ("c",)}},
            {"representations": {"a": INNER, "b": OUTER}, "trained_on": {"X": ("a",)}},
            {"representations": {"a": INNER, "b": OUTER}, "samplers": {"X": "heun"}},
        ],
    }
    for options in wrong[study]:
        with pytest.raises(ValueError, match="got"):
            study(arms=arms, **OPTIONS, **options)


def test_two_training_seeds_decide_nothing(tmp_path):
    arms, files = written(tmp_path, {"A": around(1), "B": around(2), "B, frozen": around(1)})
    few = {label: runs[:2] for label, runs in arms.items()}
    assert WithoutGan(arms=few, gan="A", without=("B",), **OPTIONS).conclude(files).verdict == "undecided"
    frozen = FreezingElsewhere(arms=few, frozen={"B": "B, frozen"}, known="A", **OPTIONS)
    assert frozen.conclude(files).verdict == "undecided"
