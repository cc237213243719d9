"""Which images of a dataset a run trains on that takes only some of them."""

from __future__ import annotations

import numpy as np


def nested_order(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the indices of a dataset in the order in which subsets of one seed take them, int64 [N].

    Each beginning of it has of every class its share of the dataset, up to one image. `labels` are int64 [N], all equal
    for a dataset without classes.
    """
    random = np.random.RandomState(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # Evenly spaced from a random start, so that small subsets do not begin with the same classes.
        place[random.permutation(members)] = (np.arange(len(members)) + random.uniform()) / len(members)
    return np.argsort(place, kind="stable")


def subset_of(labels: np.ndarray, *, images: int, seed: int) -> np.ndarray:
    """Return the sorted indices of a subset, int64 [images]. ValueError: The dataset has fewer images."""
    if images > len(labels):
        raise ValueError(f"subset.images: got {images}, expected at most {len(labels)}, those of the dataset")
    return np.sort(nested_order(labels, seed=seed)[:images])
