"""Studies that compare arms: each verdict of their rules, their numbers and controls, and what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml
from arms_files import IMAGES, OPTIONS, SEEDS, arms_of, log, measure
from matplotlib.figure import Figure

from image_archives import write_archive
from onestep.archive import write_arrays
from onestep.data._subset import nested_order
from onestep.files import write_json
from onestep.studies.augmentation import Augmentation
from onestep.studies.discriminators import Discriminators
from onestep.studies.few_images import FewImages
from onestep.studies.freeze_levels import FreezeLevels
from onestep.studies.r1_gamma import R1Gamma

FINE = [{"images_seen": 64, "losses": {"generator": 1.0}, "observed": {"logits_fake": -0.5, "logits_real": 2.0}}]
LOST = [{"images_seen": 64, "losses": {"generator": None}, "observed": {"logit_max": None}, "non_finite_share": 0.5}]


def around(*values):
    """Return the curves of three training seeds around one."""
    return [[factor * each for each in values] for factor in (0.99, 1.0, 1.01)]


def written(folder, curves, *, logs=None, images=IMAGES):
    """Write measurements and logs of three trainings an arm; return the arms and the files by the studies' names."""
    arms, files = arms_of(list(curves)), {}
    for label, group in curves.items():
        for run, values in zip(arms[label], group, strict=True):
            files[f"fd.{run}"] = measure(folder, run, values, images=images[: len(values)])
            files[f"log.{run}"] = log(folder, run, (logs or {}).get(label, FINE))
    return arms, files


def config(folder, run, **block):
    """Write the run.yaml of a run."""
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump({"run": run, **block}))
    return [path]


def drawn(found):
    """Return a study's figure, drawn."""
    figure = Figure()
    found.draw(figure)
    figure.draw_without_rendering()
    return figure


GOOD, BAD, COLLAPSED = around(9, 4, 2), around(9, 6, 4), around(9, 2, 8)
DISCRIMINATORS = {
    "confirmed": {"StyleGAN2": COLLAPSED, "VGG": BAD, "pooled": BAD, "projected": GOOD},
    "never near": {"StyleGAN2": around(90, 80, 70), "VGG": BAD, "pooled": BAD, "projected": GOOD},
    "not confirmed": {"StyleGAN2": COLLAPSED, "VGG": GOOD, "pooled": BAD, "projected": BAD},
    "contradicted": {"StyleGAN2": GOOD, "VGG": BAD, "pooled": BAD, "projected": BAD},
}


@pytest.mark.parametrize("case", DISCRIMINATORS)
def test_verdicts_on_discriminators(tmp_path, case):
    arms, files = written(tmp_path, DISCRIMINATORS[case])
    labels = {"from_scratch": "StyleGAN2", "single_scale": ("VGG", "pooled"), "multi_scale": "projected"}
    study = Discriminators(arms=arms, **labels, **OPTIONS)
    assert set(study.observes()) == set(files)
    found = study.conclude(files)
    assert found.verdict == ("confirmed" if case == "never near" else case)
    assert found.numbers["StyleGAN2.collapsed"] == (3 if DISCRIMINATORS[case]["StyleGAN2"] is COLLAPSED else 0)
    assert found.control["VGG.frechet.last"] == pytest.approx(found.numbers["projected.frechet.last"])
    if case == "contradicted":
        assert dataclasses.replace(study, reduced=True).conclude(files).verdict == "undecided"
    assert len(drawn(found).axes[0].get_legend().get_texts()) == 4


def test_two_training_seeds_decide_nothing(tmp_path):
    arms, files = written(tmp_path, DISCRIMINATORS["confirmed"])
    arms = arms | {"VGG": arms["VGG"][:2]}
    labels = {"from_scratch": "StyleGAN2", "single_scale": ("VGG", "pooled"), "multi_scale": "projected"}
    assert Discriminators(arms=arms, **labels, **OPTIONS).conclude(files).verdict == "undecided"
    with pytest.raises(ValueError, match="'none'"):
        Discriminators(arms=arms, **{**labels, "multi_scale": "none"}, **OPTIONS)


FREEZE = {
    "confirmed": {"0": BAD, "1": GOOD, "random": BAD},
    "contradicted": {"0": GOOD, "1": BAD, "random": GOOD},
    "not confirmed": {"0": BAD, "1": GOOD, "random": GOOD},
}


@pytest.mark.parametrize("verdict", FREEZE)
def test_verdicts_on_freeze_levels(tmp_path, verdict):
    arms, files = written(tmp_path, FREEZE[verdict])
    for run in (run for runs in arms.values() for run in runs):
        files[f"summary.{run}"] = [tmp_path / f"{run}.summary.json"]
        write_json(files[f"summary.{run}"][0], {"run": run, "frozen_share": 0.8})
    study = FreezeLevels(arms=arms, trained="0", frozen="1", at_random="random", **OPTIONS)
    assert set(study.observes()) == set(files)
    found = study.conclude(files)
    assert found.verdict == verdict and found.numbers["1.frozen_share"] == pytest.approx(0.8)
    assert (found.numbers["frozen against random"] < -2) is (verdict == "confirmed")


SLOW, FAST = around(9, 8, 2), around(3, 2, 2)
AUGMENTATION = {
    "confirmed": {"off": GOOD, "pipe": SLOW, "ada": SLOW},
    "contradicted": {"off": GOOD, "pipe": FAST, "ada": FAST},
    "not confirmed": {"off": GOOD, "pipe": SLOW, "ada": FAST},
}


@pytest.mark.parametrize("verdict", AUGMENTATION)
def test_verdicts_on_augmentation(tmp_path, verdict):
    arms, files = written(tmp_path, AUGMENTATION[verdict])
    found = Augmentation(arms=arms, without="off", **OPTIONS).conclude(files)
    assert found.verdict == verdict
    assert (found.numbers["pipe.slowdown"] > 1) is (verdict != "contradicted")


def test_an_augmentation_that_never_arrives_is_slower(tmp_path):
    arms, files = written(tmp_path, {"off": GOOD, "pipe": around(9, 8, 7)})
    found = Augmentation(arms=arms, without="off", **OPTIONS).conclude(files)
    assert found.verdict == "confirmed" and "pipe.slowdown" not in found.numbers


def test_the_reason_is_tested_by_a_teacher_with_and_one_without_augmentation(tmp_path):
    curves = {"off": GOOD, "pipe": around(9, 4.1, 2), "aug off": GOOD, "aug pipe": SLOW}
    arms, files = written(tmp_path, curves)
    pairs = {"plain_teacher": ("off", "pipe"), "augmented_teacher": ("aug off", "aug pipe")}
    study = Augmentation(arms=arms, without="off", **pairs, **OPTIONS)
    assert study.compared == ("pipe",)
    assert study.conclude(files).numbers["reason.gap"] > 2
    with pytest.raises(ValueError, match="augmented_teacher"):
        Augmentation(arms=arms, without="off", plain_teacher=("off", "pipe"), **OPTIONS)
    with pytest.raises(ValueError, match="pairs"):
        Augmentation(arms=arms | {"pipe": arms["pipe"][:1]}, without="off", **OPTIONS)


WEIGHTS = {"0": 0.0, "1e-4": 1e-4, "1e-2": 1e-2, "1": 1.0}
R1 = {
    "confirmed": ({"0": BAD, "1e-4": GOOD, "1e-2": GOOD, "1": GOOD}, {"1": LOST}),
    "contradicted": ({"0": GOOD, "1e-4": BAD, "1e-2": BAD, "1": BAD}, {}),
    "not confirmed": ({"0": GOOD, "1e-4": GOOD, "1e-2": GOOD, "1": GOOD}, {"1": LOST}),
}


@pytest.mark.parametrize("verdict", R1)
def test_verdicts_on_the_gradient_penalty(tmp_path, verdict):
    curves, logs = R1[verdict]
    arms, files = written(tmp_path, curves, logs=logs)
    for label, runs in arms.items():
        for run in runs:
            objective = {"name": "d2o", "r1_gamma": 4 * WEIGHTS[label]}
            files[f"run.{run}"] = config(tmp_path, run, objective=objective)
    study = R1Gamma(arms=arms, logits=274, **OPTIONS)
    assert set(study.observes()) == set(files)
    found = study.conclude(files)
    assert found.verdict == verdict
    assert {label: found.numbers[f"{label}.weight"] for label in arms} == pytest.approx(WEIGHTS)
    assert found.numbers["1e-4.largest_logit"] == 2.0 and "1.largest_logit" in found.numbers or "1" in logs
    assert found.numbers["1.exploded"] == (3 if "1" in logs else 0)
    assert found.numbers["1.non_finite_share"] == (0.5 if "1" in logs else 0.0)
    assert "1e-4.frechet.last" not in found.control and len(drawn(found).axes) == 2
    with pytest.raises(ValueError, match="^reference"):
        dataclasses.replace(study, reference=1e-3).conclude(files)


FEW = {
    "confirmed": (around(9, 2, 8), GOOD, BAD, GOOD),
    "contradicted": (GOOD, BAD, GOOD, BAD),
    "not confirmed": (GOOD, around(9, 4, 2.0), GOOD, GOOD),
}


@pytest.mark.parametrize("verdict", FEW)
def test_verdicts_on_few_images(tmp_path, verdict):
    labels = np.arange(40) % 4
    curves = dict(zip(("D2O", "D2O-F", "D2O 8", "D2O-F 8"), FEW[verdict], strict=True))
    arms, files = written(tmp_path, curves)
    real = np.random.default_rng(0).normal(size=(40, 3))
    taken = nested_order(labels, seed=5)[:8]
    options = {"sampler": "one_step", "seeds": SEEDS[0]}
    for label, runs in arms.items():
        subset = {"subset": {"images": 8, "seed": 5}} if "8" in label else {}
        for run in runs:
            files[f"run.{run}"] = config(tmp_path, run, dataset="digits", **subset)
            files[f"features.{run}"] = [tmp_path / f"{run}@{count}.npz" for count in IMAGES]
            for count, path in zip(IMAGES, files[f"features.{run}"], strict=True):
                found = real[taken] if (label, count) == ("D2O 8", IMAGES[-1]) else real + 0.5
                write_arrays(path, {"features": found}, about={"subject": {"model": f"{run}@{count}", **options}})
            if not subset:
                files[f"at.{run}"] = files[f"fd.{run}"][-2:]
    write_arrays(tmp_path / "real.npz", {"features": real}, about={})
    files |= {"real": [tmp_path / "real.npz"], "images": [tmp_path / "digits.zip"]}
    write_archive(tmp_path / "digits.zip", [(np.full((1, 4, 4), n, np.uint8), n % 4) for n in range(40)])
    pairs = (("D2O", "D2O-F"), ("D2O 8", "D2O-F 8"))
    study = FewImages(arms=arms, pairs=pairs, at=IMAGES[-1], dataset="digits", features="digits", **OPTIONS)
    assert set(study.observes()) == set(files)
    found = study.conclude(files)
    assert found.verdict == verdict and len(drawn(found).axes) == 2
    assert found.numbers["D2O 8.nearest"] == pytest.approx(0, abs=1e-6) and found.control["D2O 8.nearest"] > 0
    assert found.numbers["D2O 8.nearer_to_training"] == 1 and found.control["D2O 8.nearer_to_training"] == 0.5
    assert "D2O.nearer_to_training" not in found.numbers and found.numbers["D2O.nearest"] > 0
    assert ("crossing.1" in found.numbers) is (verdict == "confirmed")
    assert (found.numbers["tested.gap"] < -2) is (verdict == "confirmed")
    with pytest.raises(ValueError, match="^at: got 3000"):
        dataclasses.replace(study, at=3_000).conclude(files)
    with pytest.raises(ValueError, match="subset"):
        study.conclude({**files, f"run.{arms['D2O'][0]}": config(tmp_path, arms["D2O"][0], dataset="digits", subset=1)})
