"""The Frechet distance: recorded numbers, analytic numbers, deficient ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from onestep.metrics import Statistics
from onestep.metrics.frechet import FrechetDistance, frechet_from_statistics, gaussian_fit


def _covariance(width: int, *, seed: int, rank: int | None = None) -> np.ndarray:
    factor = np.random.RandomState(seed).standard_normal((width, rank or 2 * width))
    return factor @ factor.T / factor.shape[1]


@pytest.mark.golden
def test_distances_are_those_of_four_implementations(golden):
    recorded = golden.load("frechet.npz")
    for case in golden.cases(recorded):
        a, b = recorded[f"{case}/feats_a"], recorded[f"{case}/feats_b"]
        implementations = [key for key in recorded if key.startswith(f"{case}/fid_")]
        assert implementations
        for key in implementations:
            assert FrechetDistance()(generated=a, real=b)["frechet"] == pytest.approx(recorded[key], rel=1e-5), key


@pytest.mark.golden
def test_statistics_are_edms(golden):
    recorded = golden.load("frechet.npz")
    for case in golden.cases(recorded):
        for side in "ab":
            mean, covariance = gaussian_fit(recorded[f"{case}/feats_{side}"])
            np.testing.assert_allclose(mean, recorded[f"{case}/mu_{side}"], rtol=1e-5, atol=1e-12)
            np.testing.assert_allclose(covariance, recorded[f"{case}/sigma_{side}"], rtol=1e-5, atol=1e-12)
        statistics = [recorded[f"{case}/{name}"] for name in ("mu_a", "sigma_a", "mu_b", "sigma_b")]
        assert frechet_from_statistics(*statistics) == pytest.approx(recorded[f"{case}/fid_edm"], rel=1e-5)


def test_of_shifted_gaussians_is_the_squared_shift():
    covariance, shift = _covariance(12, seed=0), np.linspace(-1, 2, 12)
    found = frechet_from_statistics(shift, covariance, np.zeros(12), covariance)
    assert found == pytest.approx((shift**2).sum(), rel=1e-10)


def test_of_commuting_covariances_is_the_distance_of_their_roots():
    rotation = np.linalg.qr(np.random.RandomState(1).standard_normal((6, 6)))[0]
    a, b = np.array([0.1, 1, 2, 3, 4, 9]), np.array([1, 1, 4, 0.5, 4, 0.01])
    covariances = [rotation @ np.diag(variances) @ rotation.T for variances in (a, b)]
    found = frechet_from_statistics(np.zeros(6), covariances[0], np.zeros(6), covariances[1])
    assert found == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-10)


def test_of_few_images_shifted_is_the_squared_shift():
    real = np.random.RandomState(2).standard_normal((5, 20))  # rank 4 of 20
    found = FrechetDistance()(generated=real + 0.5, real=real)
    assert found["frechet"] == pytest.approx(20 * 0.25, rel=1e-6)


def test_of_gaussians_in_planes_without_a_common_direction_is_the_sum_of_their_traces():
    a, b = np.zeros((8, 8)), np.zeros((8, 8))
    a[:3, :3], b[4:, 4:] = _covariance(3, seed=3), _covariance(4, seed=4)
    found = frechet_from_statistics(np.zeros(8), a, np.zeros(8), b)
    assert found == pytest.approx(np.trace(a) + np.trace(b), rel=1e-10)


@pytest.mark.parametrize("rank", [1, 5, None])
def test_is_symmetric_whichever_rank_is_deficient(rank):
    a, b = _covariance(9, seed=5, rank=rank), _covariance(9, seed=6)
    there = frechet_from_statistics(np.ones(9), a, np.zeros(9), b)
    assert there == pytest.approx(frechet_from_statistics(np.zeros(9), b, np.ones(9), a), rel=1e-6)


def test_of_one_picture_repeated_is_measured_against_the_spread_of_the_others():
    real = np.random.RandomState(7).standard_normal((50, 4))
    found = FrechetDistance()(generated=np.zeros((9, 4)), real=real)["frechet"]
    assert found == pytest.approx((real.mean(0) ** 2).sum() + real.var(0, ddof=1).sum(), rel=1e-10)


def test_of_a_set_from_itself_is_zero_and_never_below():
    for seed in range(20):
        real = np.random.RandomState(seed).standard_normal((12, 30)).astype(np.float32)
        assert 0 <= FrechetDistance()(generated=real, real=real)["frechet"] < 1e-5


def test_a_large_mean_costs_no_digits():
    features = np.random.RandomState(8).standard_normal((200, 5))
    near, far = gaussian_fit(features)[1], gaussian_fit(features + 1e6)[1]
    torch.testing.assert_close(far, near, rtol=1e-8, atol=1e-8)


def test_arrays_and_tensors_and_types_agree():
    generated, real = np.random.RandomState(9).standard_normal((2, 60, 7)).astype(np.float32)
    expected = FrechetDistance()(generated=generated, real=real)["frechet"]
    assert type(expected) is float
    pair = {"generated": torch.from_numpy(generated).requires_grad_(), "real": torch.from_numpy(real).double()}
    assert FrechetDistance()(**pair)["frechet"] == expected
    read_only = np.broadcast_to(real[:1], (3, 7))
    assert math.isfinite(FrechetDistance()(generated=generated, real=read_only)["frechet"])


def _with(value: float) -> np.ndarray:
    features = np.zeros((4, 3))
    features[1, 2] = value
    return features


@pytest.mark.parametrize(
    ("generated", "real", "message"),
    [
        (_with(np.nan), _with(0), "generated features: 1 of 4 images have values that are not finite"),
        (_with(0), _with(-np.inf), "real features: 1 of 4 images have values that are not finite"),
        (_with(0)[:1], _with(0), "generated features: got 1 images, expected at least 2"),
        (_with(0), _with(0)[:0], "real features: got 0 images, expected at least 2"),
        (_with(0), _with(0)[:, :2], "features: .* width 3 .* width 2"),
        (_with(0), _with(0)[0], r"real features: got the shape \[3\]"),
    ],
)
def test_what_has_no_distance_is_refused(generated, real, message):
    with pytest.raises(ValueError, match=message):
        FrechetDistance()(generated=generated, real=real)


def test_statistics_of_different_widths_are_refused():
    with pytest.raises(ValueError, match=r"statistics: got .*\[3\], \[3, 3\], \[2\], \[2, 2\]"):
        frechet_from_statistics(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))


def test_statistics_stand_for_the_features_they_were_made_of():
    random = np.random.RandomState(0)
    generated, real = random.standard_normal((80, 5)), random.standard_normal((90, 5)) + 0.5
    mean, covariance = gaussian_fit(real)
    found = FrechetDistance()(generated=generated, real=Statistics(mean=mean.numpy(), covariance=covariance.numpy()))
    assert found == FrechetDistance()(generated=generated, real=real)
