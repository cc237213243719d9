"""Membership in k-NN balls: against all distances written out, whatever the features; independent of the memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from onestep.metrics._features import memberships, prepared, squared_distances


def _cloud(images: int, *, width: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((images, width)).astype(np.float32)


def _clouds(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets that overlap, the generated one narrower."""
    return 0.9 * _cloud(300, width=width, seed=0), _cloud(350, width=width, seed=1)


def _lattice(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances that equal radii everywhere, around a center that binary numbers do not represent."""
    draws = np.random.RandomState(2).randint(0, 3, (2, 300, width)).astype(np.float32)
    return draws[0, :299], draws[1]


def _copies(width: int) -> tuple[np.ndarray, np.ndarray]:
    generated, real = _clouds(width)
    return np.concatenate([generated, generated[:50], real[:40]]), np.concatenate([real, real[100:150], real[100:150]])


def _line(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank 1."""
    one, other = (_cloud(300, width=1, seed=seed) * _cloud(1, width=width, seed=9) for seed in (3, 4))
    return one, other


def _outlier(width: int) -> tuple[np.ndarray, np.ndarray]:
    generated, real = _clouds(width)
    generated[3] *= 1e3
    real[5] *= 1e4
    return generated, real


def _nearly_tied(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Generated images at the radius of a real one, nearer or farther by up to 1e-10: float32 cannot decide."""
    real = 100 * _cloud(60, width=width, seed=5).astype(np.float64)
    distances = np.linalg.norm(real[:, None] - real[None], axis=2)
    third = np.argsort(distances, axis=1)[:, 3]
    away = real - real[third]  # from the neighbor through the center to the other side
    share = 1 + np.where(np.arange(60) % 2, 1, -1) * 10.0 ** -np.random.RandomState(6).uniform(3, 10, 60)
    return real + away * share[:, None], real


SETS = {
    "clouds": _clouds,
    "a common mean": lambda width: tuple(rows + 1000 for rows in _clouds(width)),
    "means far apart": lambda width: (_clouds(width)[0] + 1e4, _clouds(width)[1]),
    "a set and itself": lambda width: (_clouds(width)[1], _clouds(width)[1]),
    "copies": _copies,
    "one image repeated": lambda width: (np.repeat(_clouds(width)[1][7:8], 60, axis=0), _clouds(width)[1]),
    "a line": _line,
    "an outlier": _outlier,
    "nearly tied": _nearly_tied,
    "small": lambda width: tuple(1e-20 * rows for rows in _clouds(width)),
    "large": lambda width: tuple(1e20 * rows.astype(np.float64) for rows in _clouds(width)),
}


def _prepared(sets: tuple[np.ndarray, ...]) -> tuple[Tensor, Tensor]:
    generated, real = map(torch.from_numpy, sets)
    return prepared(generated, real, arithmetic="float64")


def _written_out(generated: Tensor, real: Tensor, *, neighbours: int) -> tuple[Tensor, Tensor]:
    """All differences, squared and summed in float64."""

    def table(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")

    radii = [table(rows, rows).sort(dim=1).values[:, neighbours] for rows in (generated, real)]
    between = table(generated, real)
    return (between <= radii[1]).any(dim=1), (between <= radii[0][:, None]).any(dim=0)


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("name", SETS)
def test_the_answers_are_those_of_all_distances(name, width):
    sets = _prepared(SETS[name](width))
    for neighbours in (1, 3):
        expected = _written_out(*sets, neighbours=neighbours)
        for memory_mib in (1, 64):
            found = memberships(*sets, neighbours=neighbours, memory_mib=memory_mib)
            assert all(map(torch.equal, found, expected)), (neighbours, memory_mib)


@pytest.mark.parametrize("width", [8, 64, 2048])
def test_memory_changes_no_answer_where_distances_equal_radii(width):
    sets = _prepared(_lattice(width))
    few, many = (memberships(*sets, neighbours=3, memory_mib=size) for size in (1, 64))
    assert all(map(torch.equal, few, many))


def test_single_precision_would_answer_differently():
    sets = _prepared(_nearly_tied(64))
    expected = memberships(*sets, neighbours=3, memory_mib=64)
    single = memberships(*(rows.float() for rows in sets), neighbours=3, memory_mib=64)
    assert not all(map(torch.equal, single, expected))


def test_copies_have_distance_zero():
    generated, real = _prepared((_clouds(64)[1][:5] + 1000, _clouds(64)[1] + 1000))
    ((_, squared),) = squared_distances(generated, real, memory_mib=64)
    assert (squared[:, :5].diagonal() == 0).all() and (squared[:, 5:] > 0).all()
