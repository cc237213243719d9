"""Kernel distance: against the formula written out, unbiasedness, the draw."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from onestep.metrics.kernel_distance import KernelDistance


def cloud(count: int, *, seed: int, shift: float = 0.0, width: int = 6) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((count, width)).astype(np.float32) + np.float32(shift)


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return (float(np.dot(x.astype(np.float64), y.astype(np.float64))) / len(x) + 1) ** 3


def by_pairs(a: np.ndarray, b: np.ndarray) -> float:
    """Return the estimator as it is printed, one pair after the other."""
    count = len(a)
    same = sum(kernel(s[i], s[j]) for s in (a, b) for i, j in itertools.permutations(range(count), 2))
    return same / (count * (count - 1)) - 2 * sum(kernel(x, y) for x in a for y in b) / count**2


def test_one_subset_of_all_images_is_the_printed_formula():
    a, b = cloud(12, seed=0), cloud(12, seed=1, shift=0.5)
    found = KernelDistance(subsets=1, subset_images=12)(generated=a, real=b)
    assert found["kernel_distance"] == pytest.approx(by_pairs(a, b), rel=1e-12)
    assert found["kernel_distance_std"] == 0


def test_equal_distributions_are_at_zero_on_average_and_others_are_not():
    measure = KernelDistance(subsets=200, subset_images=50)
    same = measure(generated=cloud(2000, seed=0), real=cloud(2000, seed=1))
    other = measure(generated=cloud(2000, seed=0, shift=0.3), real=cloud(2000, seed=1))
    assert abs(same["kernel_distance"]) < 0.02
    assert other["kernel_distance"] > 10 * abs(same["kernel_distance"])


def test_the_draw_repeats_and_depends_on_the_seed():
    sets = {"generated": cloud(80, seed=0), "real": cloud(80, seed=1)}
    first, again, another = (KernelDistance(subsets=3, subset_images=20, seed=seed)(**sets) for seed in (0, 0, 1))
    assert first == again != another


def test_tensors_give_what_arrays_give():
    a, b = cloud(40, seed=0), cloud(40, seed=1)
    measure = KernelDistance(subsets=2, subset_images=30)
    assert measure(generated=a, real=b) == measure(generated=torch.from_numpy(a), real=torch.from_numpy(b))


def test_too_few_images_for_a_subset_are_refused():
    with pytest.raises(ValueError, match="generated features: got 10 images, expected at least 20"):
        KernelDistance(subset_images=20)(generated=cloud(10, seed=0), real=cloud(20, seed=1))
    with pytest.raises(ValueError, match="subsets and subset_images: got 1 and 1"):
        KernelDistance(subsets=1, subset_images=1)
