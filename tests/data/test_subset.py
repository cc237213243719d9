"""Subsets of a dataset: nested, of each class its share, by a seed."""

from __future__ import annotations

import numpy as np
import pytest

from onestep.data._subset import nested_order, subset_of

LABELS = np.repeat([0, 1, 2], (60, 30, 10))


def test_a_smaller_subset_is_part_of_a_larger_one():
    subsets = [set(subset_of(LABELS, images=images, seed=3).tolist()) for images in (1, 7, 50, 100)]
    assert [len(each) for each in subsets] == [1, 7, 50, 100]
    assert all(small < large for small, large in zip(subsets, subsets[1:], strict=False))


@pytest.mark.parametrize("images", [10, 20, 50])
def test_each_class_has_its_share_up_to_one_image(images):
    for seed in range(20):
        counts = np.bincount(LABELS[subset_of(LABELS, images=images, seed=seed)], minlength=3)
        assert np.abs(counts - images * np.array([0.6, 0.3, 0.1])).max() <= 1.5


def test_the_draw_follows_the_seed_and_is_spread_over_a_dataset_without_classes():
    assert subset_of(LABELS, images=9, seed=0).tolist() == subset_of(LABELS, images=9, seed=0).tolist()
    assert subset_of(LABELS, images=9, seed=0).tolist() != subset_of(LABELS, images=9, seed=1).tolist()
    order = nested_order(np.zeros(1000, np.int64), seed=0)
    assert sorted(order.tolist()) == list(range(1000)) and 300 < order[:100].mean() < 700


def test_more_images_than_there_are_is_refused():
    with pytest.raises(ValueError, match="subset.images: got 101.* 100"):
        subset_of(LABELS, images=101, seed=0)
