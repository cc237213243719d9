"""The inception score: recorded numbers, its bounds, its splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onestep.metrics.inception_score import InceptionScore


@pytest.fixture
def recorded(golden):
    return golden.load("inception_score.npz")


@pytest.mark.golden
def test_splits_of_fixed_size_give_guided_diffusions_score(golden, recorded):
    for case in golden.cases(recorded):
        size = int(recorded[f"{case}/split_size"])
        found = InceptionScore(split_size=size)(recorded[f"{case}/probs"])
        assert found["inception_score"] == pytest.approx(float(recorded[f"{case}/is"]), rel=1e-5)


@pytest.mark.golden
def test_equal_splits_give_torch_fidelitys_score(golden, recorded):
    splits, seed = (int(golden.said("inception_score.npz", rf"{word}\W(\d+)")) for word in ("splits", "seed"))
    for case in golden.cases(recorded):
        probabilities = torch.from_numpy(recorded[f"{case}/logits"]).double().softmax(dim=1)
        shuffled = probabilities[np.random.RandomState(seed).permutation(len(probabilities))]
        found = InceptionScore(splits=splits)(shuffled)
        assert found["inception_score"] == pytest.approx(float(recorded[f"{case}/torch_fidelity_mean"]), rel=1e-5)
        assert found["inception_score_std"] == pytest.approx(float(recorded[f"{case}/torch_fidelity_std"]), rel=1e-5)


def test_sure_and_varied_images_score_the_number_of_classes():
    found = InceptionScore(splits=3)(probabilities=np.tile(np.eye(5), (6, 1)))  # zeros: 0 log 0 is 0
    assert found["inception_score"] == pytest.approx(5, rel=1e-12)
    assert found["inception_score_std"] == pytest.approx(0, abs=1e-12)


def test_images_of_one_class_and_undecided_images_score_one():
    for row in ([0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]):
        assert InceptionScore(splits=2)(np.tile(row, (8, 1)))["inception_score"] == pytest.approx(1, rel=1e-12)


def test_both_ways_to_split_agree_where_the_splits_are_equal():
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    assert InceptionScore(splits=4)(rows) == InceptionScore(split_size=10)(rows)
    assert InceptionScore(splits=1)(rows) == InceptionScore(split_size=99)(rows)


def test_the_score_is_the_mean_over_consecutive_splits_and_the_deviation_that_of_all():
    rows = torch.randn(11, 4, generator=torch.Generator().manual_seed(1)).double().softmax(dim=1)
    scores = [InceptionScore(splits=1)(part)["inception_score"] for part in (rows[:3], rows[3:7], rows[7:])]
    found = InceptionScore(splits=3)(rows)
    assert found["inception_score"] == pytest.approx(np.mean(scores), rel=1e-12)
    assert found["inception_score_std"] == pytest.approx(np.std(scores), rel=1e-9)


def test_by_default_there_are_ten_splits_as_in_the_papers_code():
    assert InceptionScore() == InceptionScore(splits=10)


@pytest.mark.parametrize("options", [{"splits": 2, "split_size": 5}, {"splits": 0}, {"split_size": -1}])
def test_two_ways_to_split_are_refused(options):
    with pytest.raises(ValueError, match="splits or split_size: got "):
        InceptionScore(**options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.full((4, 2), 3.0), "probabilities: .* sums from 6 to 6"),
        (np.array([[1.5, -0.5]] * 4), "probabilities: got a minimum of -0.5"),
        (np.array([[np.nan, 1.0]] * 4), "4 of 4 images have values that are not finite"),
        (np.full((2, 2), 0.5), "got 2 images, expected at least 3"),
    ],
)
def test_what_are_no_probabilities_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        InceptionScore(splits=3)(rows)
