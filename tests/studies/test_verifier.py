"""The best of N by a ratio network: scores, groups of candidates, each verdict, and the findings of three trainings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from onestep.archive import write_arrays
from onestep.checkpoints.snapshot import write_snapshot
from onestep.figures import svg
from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.precision_recall import PrecisionRecall
from onestep.ratios import build_ratio
from onestep.studies import RoleWeights, _best_of
from onestep.studies.verifier import Verifier, verdict

NETWORK = {"name": "song_unet", "img_resolution": 8, "img_channels": 1, "label_dim": 3}
NETWORK |= {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": []}
OPTIONS = {"sampler": "one_step", "dataset": "digits", "features": "digits", "candidates": (1, 2, 4), "levels": 3}
RUNS = ("a.seed=0", "a.seed=1", "a.seed=2")
COUNT = 160


def write_ratio(path, config):
    network = build_ratio(config)
    write_snapshot(path, network.state_dict(), config)
    return network


def files_of(folder, *, slope, classes=False):
    """Write what the study reads: dark images have features near those of the real ones."""
    random = np.random.default_rng(0)
    files = {"real": [folder / "real.npz"]}
    write_arrays(files["real"][0], {"features": random.normal(0.0, 20.0, (200, 2))}, about={})
    for seed, run in enumerate(RUNS):
        random = np.random.default_rng(seed)
        brightness = random.integers(0, 250, COUNT)
        pixels = np.broadcast_to(brightness[:, None, None, None], (COUNT, 8, 8, 1)).astype(np.uint8)
        labels = random.integers(0, 3, COUNT) if classes else np.full(COUNT, -1)
        kinds = ("images.npz", "features.npz", "ratio.safetensors")
        images, features, ratio = (folder / f"{seed}.{kind}" for kind in kinds)
        write_arrays(images, {"pixels": pixels, "labels": labels, "seeds": np.arange(COUNT)}, about={})
        spread = random.normal(0.0, 20.0, (COUNT, 2)) + brightness[:, None]
        write_arrays(features, {"features": spread}, about={})
        write_ratio(ratio, {"name": "quality_ratio:Quality", "slope": slope, "network": NETWORK})
        files |= {f"images.{run}": [images], f"features.{run}": [features], f"ratio.{run}": [ratio]}
    return files


@pytest.mark.parametrize(("slope", "expected"), [(1.0, "confirmed"), (-1.0, "contradicted")])
def test_the_best_of_more_candidates_are_nearer_or_farther(tmp_path, slope, expected):
    study = Verifier(runs=RUNS, seeds=f"0-{COUNT - 1}", **OPTIONS)
    files = files_of(tmp_path, slope=slope)
    assert set(files) == set(study.observes())
    assert study.observes()[f"ratio.{RUNS[0]}"] == RoleWeights(run=RUNS[0], role="ratio")
    found = study.conclude(files)
    assert found.verdict == expected
    assert found.arrays["best.frechet"].shape == (3, 3) and found.arrays["scores"].shape == (3, COUNT)
    # One candidate leaves no choice, and each N keeps as many images.
    for value in ("frechet", "recall", "precision"):
        assert found.numbers[f"1.{value}"] == found.control[f"1.{value}"]
    assert (found.numbers["4.frechet"] < found.control["4.frechet"]) == (slope > 0)
    assert found.numbers["gain"] == pytest.approx(found.control["4.frechet"] - found.numbers["4.frechet"])
    features, real = (np.load(files[name][0])["features"] for name in (f"features.{RUNS[0]}", "real"))
    pixels = np.load(files[f"images.{RUNS[0]}"][0])["pixels"][:, 0, 0, 0].astype(int)
    rows = pixels.reshape(-1, 4)
    picked = np.arange(len(rows)) * 4 + (rows.argmin(axis=1) if slope > 0 else rows.argmax(axis=1))
    assert found.arrays["best.frechet"][0, -1] == FrechetDistance()(generated=features[picked], real=real)["frechet"]
    shares = PrecisionRecall()(generated=features[picked], real=real)
    assert found.arrays["best.recall"][0, -1] == shares["recall"]
    figure = Figure(layout="constrained")
    found.draw(figure)
    assert len(figure.axes) == 2 and svg(figure).startswith("<svg")


def test_candidates_of_a_group_have_one_class(tmp_path):
    labels = np.array([0, 1, 0, 0, 1, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(_best_of.groups(labels, size=2), [[0, 2], [3, 5], [1, 4], [6, 7]])
    values = np.array([3.0, 1.0, 9.0, 2.0, 0.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    np.testing.assert_array_equal(_best_of.best(_best_of.groups(labels, size=2), values), [2, 5, 1, 7])
    chosen = _best_of.any_of(np.arange(2_000).reshape(500, 4), seed=0)
    np.testing.assert_array_equal(chosen // 4, np.arange(500))
    assert np.bincount(chosen % 4).min() > 80
    study = Verifier(runs=RUNS, seeds=f"0-{COUNT - 1}", **OPTIONS)
    assert study.conclude(files_of(tmp_path, slope=1.0, classes=True)).verdict == "confirmed"


def test_scores_are_the_weighted_mean_over_the_levels(tmp_path):
    config = {"name": "ratio_unet", "weights": "random", "network": NETWORK}
    torch.manual_seed(0)
    network = write_ratio(tmp_path / "ratio.safetensors", config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(parameter[0].numel(), 1) ** 0.5)
    write_snapshot(tmp_path / "ratio.safetensors", network.state_dict(), config)
    pixels = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8)
    labels, levels, weights = np.array([0, 1, 2, 0, 1, 2]), (0.1, 3.0), (1.0, 4.0)
    given = {"levels": levels, "weights": weights, "seed": 5, "label": "scores"}
    loaded = _best_of.load_ratio(tmp_path / "ratio.safetensors")
    found = _best_of.scores(loaded, pixels, labels, batch=6, **given)
    noise = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(5))
    condition = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).float()
    images = pixels.float() / 127.5 - 1
    with torch.no_grad():
        both = [network(images + s * n, torch.full((6,), s), condition) for s, n in zip(levels, noise, strict=True)]
    np.testing.assert_allclose(found, ((both[0] + 4 * both[1]) / 5).numpy(), rtol=1e-5)
    np.testing.assert_allclose(_best_of.scores(loaded, pixels, labels, batch=4, **given), found, rtol=1e-5)
    assert len(set(found.round(6))) == 6


def test_a_file_of_another_network_is_refused(tmp_path):
    write_snapshot(tmp_path / "other.safetensors", {"weight": torch.zeros(2)}, NETWORK)
    with pytest.raises(ValueError, match="other.safetensors"):
        _best_of.load_ratio(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((1.0, 1.1, 0.9), "confirmed"),
        ((1.0, 4.0, 0.1), "not confirmed"),
        ((1.0, 1.1, -0.1), "not confirmed"),
        ((-1.0, -1.1, -0.9), "contradicted"),
        ((1.0, 1.1), "undecided"),
    ],
)
def test_each_verdict(gains, expected):
    assert verdict(gains) == expected


def test_the_law_has_the_middles_of_equal_parts():
    levels, weights = Verifier(runs=RUNS, seeds="0-99", **{**OPTIONS, "levels": 400}).law()
    assert weights == (1.0,) * 400 and 0.002 < levels[0] < 0.0021 and 24 < levels[-1] < 24.4
    levels, weights = Verifier(runs=RUNS, seeds="0-99", weight="sigma_squared", **OPTIONS).law()
    assert weights == tuple(level**2 for level in levels)


@pytest.mark.parametrize(
    "wrong",
    [{"candidates": (2, 4)}, {"candidates": (1, 4, 2)}, {"runs": ("a", "a")}, {"seeds": "0-9"}, {"sigma_min": 90.0}],
    ids=lambda each: next(iter(each)),
)
def test_options_that_fit_no_selection(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Verifier(**{"runs": RUNS, "seeds": "0-99", **OPTIONS, **wrong})
