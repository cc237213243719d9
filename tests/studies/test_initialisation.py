"""What initial weights give: each verdict of the rule, stages and thresholds, linear probes, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from arms_files import OPTIONS, arms_of, log, measure
from matplotlib.figure import Figure

from image_archives import write_archive
from onestep.checkpoints.snapshot import write_snapshot
from onestep.networks import build_denoiser
from onestep.studies import Weights
from onestep.studies._probes import probe
from onestep.studies._run import study as run_study
from onestep.studies.initialisation import InitialWeights
from tiny import tiny_network

BUDGET, IMAGES = 4_000, (0, 500, 2_000, 4_000)
ROLES = {"teacher": "teacher", "random": "random", "single_level": "single", "features_only": "features"}
FINE = [{"images_seen": 64, "losses": {"generator": 1.0}}]


def around(*values):
    """Return the curves of three training seeds around one."""
    return [[factor * each for each in values] for factor in (0.99, 1.0, 1.01)]


TEACHER, RANDOM, LATER = around(9, 5, 3, 2), around(20, 12, 9, 8), around(20, 12, 9, 8, 5)
CASES = {
    # H2: a single level is worse than the teacher, and features without the map are near to it.
    "confirmed": (TEACHER, RANDOM, around(9, 7, 6, 5), around(20, 6, 4, 3)),
    # H1: a single level does as well, and features without the map are as bad as fresh weights.
    "contradicted": (TEACHER, RANDOM, around(9, 5, 3, 2.01), around(20, 12, 9, 8.01)),
    "not confirmed": (TEACHER, RANDOM, around(9, 7, 6, 5), around(20, 11, 8, 7)),
}


def written(folder, curves, *, images=IMAGES):
    """Write the files of arms; return the arms and the files by the study's names."""
    arms, files = arms_of(list(curves)), {}
    for label, group in curves.items():
        for run, values in zip(arms[label], group, strict=True):
            counts = (*images, 10 * BUDGET)[: len(values)]
            found = measure(folder, run, values, images=counts)
            files[f"fd.{run}"], files[f"log.{run}"] = found, log(folder, run, FINE)
            for stage, count in zip(("start", "eighth", "half", "end"), images, strict=True):
                files[f"{stage}.{run}"] = [path for path in found if f".{count}." in path.name]
            recalls = [0.1 * (place + 1) for place in range(len(counts))]
            files[f"pr.{run}"] = measure(
                folder, run, recalls, images=counts, metric="pr", value="recall", better="higher"
            )
    return arms, files


def study_of(arms, **changes):
    return InitialWeights(arms=arms, budget=BUDGET, recall="pr.recall", **ROLES, **OPTIONS, **changes)


@pytest.mark.parametrize("verdict", CASES)
def test_verdicts(tmp_path, verdict):
    curves = dict(zip(ROLES.values(), CASES[verdict], strict=True)) | {"mapping": around(1, 2, 2, 2)}
    arms, files = written(tmp_path, curves)
    study = study_of(arms, mapping_only="mapping")
    assert set(study.observes()) == set(files)
    found = study.conclude(files)
    assert found.verdict == verdict
    assert (found.numbers["H1"], found.numbers["H2"]) == (verdict == "contradicted", verdict == "confirmed")
    assert found.numbers["single.gap"] > 2 or verdict == "contradicted"
    assert [found.numbers[f"teacher.frechet.{stage}"] for stage in study.stages] == pytest.approx([9, 5, 3, 2])
    assert found.numbers["teacher.recall.end"] == pytest.approx(0.4) and found.numbers["threshold"] == pytest.approx(3)
    assert found.numbers["mapping.images_until_threshold"] == 0 and found.numbers["mapping.decides"] == 0
    assert found.numbers["teacher.images_until_threshold"] == pytest.approx(2_000, rel=0.03)
    assert "random.images_until_threshold" not in found.numbers and "indispensable" not in found.numbers
    assert found.control["teacher.frechet.end"] == pytest.approx(8) and "random.frechet.end" not in found.control
    assert -1 <= found.numbers["rank_correlation"] <= 1 and found.numbers["worse_at_the_budget"] == 1
    fewer = {label: runs[: 2 if label == "single" else 3] for label, runs in arms.items()}
    assert dataclasses.replace(study, arms=fewer).conclude(files).verdict == "undecided"


@pytest.mark.parametrize(("last", "indispensable"), [(5.0, 1), (2.0, 0)])
def test_ten_times_the_images_separate_indispensable_from_slower(tmp_path, last, indispensable):
    longer = [[*values, last * values[0] / 20] for values in RANDOM]
    curves = dict(zip(ROLES.values(), (TEACHER, longer, *CASES["confirmed"][2:]), strict=True))
    arms, files = written(tmp_path, curves)
    found = study_of(arms).conclude(files)
    assert found.verdict == "confirmed" and found.numbers["indispensable"] == indispensable
    assert found.numbers["random.frechet.end"] == pytest.approx(8)
    assert found.numbers["random.frechet.longer"] == pytest.approx(last)
    figure = Figure()
    found.draw(figure)
    figure.draw_without_rendering()
    assert len(figure.axes) == 2 and figure.axes[0].get_xlim()[0] > 0


def test_the_rank_of_arms_at_the_start_and_at_the_end(tmp_path):
    ends = (2, 4, 6, 8)
    for order, correlation in ((1, 1.0), (-1, -1.0)):
        starts = sorted((10, 20, 30, 40), reverse=order < 0)
        curves = {label: around(s, 50, 45, e) for label, s, e in zip(ROLES.values(), starts, ends, strict=True)}
        arms, files = written(tmp_path / str(order), curves)
        assert study_of(arms).conclude(files).numbers["rank_correlation"] == pytest.approx(correlation)


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    arms, files = written(tmp_path, dict(zip(ROLES.values(), CASES["confirmed"], strict=True)))
    with pytest.raises(ValueError, match="'none'"):
        dataclasses.replace(study_of(arms), mapping_only="none")
    with pytest.raises(ValueError, match="^budget: got 4,"):
        dataclasses.replace(study_of(arms), budget=4)
    with pytest.raises(ValueError, match="^budget: got no snapshot of .* at 750 "):
        dataclasses.replace(study_of(arms), budget=6_000).conclude(files)


def test_a_probe_finds_what_is_linear_and_not_what_is_not_there():
    random = np.random.default_rng(0)
    labels = random.integers(3, size=600)
    features = random.normal(size=(600, 5)).astype(np.float32)
    assert 0.2 < probe(features, labels, classes=3) < 0.45
    features[:, 1] += 10 * (labels == 1)
    features[:, 4] -= 10 * (labels == 2)
    features[:, 0] = 7.0
    assert probe(features, labels, classes=3) == 1.0
    # The held-out images are no part of it: with other classes there, none is found.
    other = np.where(np.arange(600) % 3 == 2, (labels + 1) % 3, labels)
    assert probe(features, other, classes=3) < 0.05


@pytest.mark.parametrize("classes", [0, 2])
def test_probes_see_the_class_at_low_noise_and_equal_weights_are_probed_once(tmp_path, classes, monkeypatch):
    from onestep.studies import _probes

    curves = {label: group[:1] for label, group in zip(ROLES.values(), CASES["confirmed"], strict=True)}
    arms, files = arms_of(list(curves), seeds=1), {}
    _, files = written(tmp_path, {label: [group[0]] * 3 for label, group in curves.items()})
    config = tiny_network(channel_mult=[1, 2], attn_resolutions=[8], preconditioning="edm", label_dim=classes)
    for label, (run,) in arms.items():
        torch.manual_seed(int(label == "random"))
        path = tmp_path / f"{run}.safetensors"
        write_snapshot(path, build_denoiser(config).state_dict(), config)
        files[f"weights.{run}"] = [path]
    random = np.random.default_rng(0)
    # Of two classes by their stripes, in each third image, too.
    labels = random.integers(2, size=60)
    stripes = np.zeros((2, 16, 16), np.uint8)
    stripes[0, ::2], stripes[1, :, ::4] = 255, 255
    archive = tmp_path / "digits.zip"
    write_archive(archive, [(stripes[label][None], int(label)) for label in labels])
    files["images"] = [archive]
    calls, own = [], _probes.accuracies
    monkeypatch.setattr(_probes, "accuracies", lambda *args, **named: calls.append(args) or own(*args, **named))
    options = {"budget": BUDGET, "dataset": "digits", "sigmas": [0.05, 50.0], "probe_images": 60, **ROLES, **OPTIONS}
    study = InitialWeights(arms=arms, **{key: tuple(v) if isinstance(v, list) else v for key, v in options.items()})
    run = arms["single"][0]
    assert study.observes()[f"weights.{run}"] == Weights(model=f"{run}@0", blocks=True)
    files = {key: paths for key, paths in files.items() if key in study.observes()}
    block = {"name": "initialisation", "arms": {key: list(each) for key, each in arms.items()}, **options}
    block["seeds"] = list(block["seeds"])
    assert run_study(study=block, name="start", files=files, output=tmp_path / "study") == 0
    assert len(calls) == 2, "fresh weights, and those that all others have"
    found = study.conclude(files)
    assert found.arrays["teacher.probes"].shape == (1, 10, 2)
    assert found.numbers["teacher.probe.0.05.best"] == 1.0 and found.numbers["teacher.probe.50"] < 0.8
    assert found.control["teacher.probe.0.05"] == found.numbers["random.probe.0.05"]
    assert {path.suffix for path in (tmp_path / "study").iterdir()} == {".json", ".md", ".npz", ".svg"}
    unlabelled = tmp_path / "unlabelled.zip"
    write_archive(unlabelled, [(stripes[0][None], None)] * 60)
    with pytest.raises(ValueError, match="without classes"):
        study.conclude({**files, "images": [unlabelled]})
