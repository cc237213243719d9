"""Screening by float32: the answers of float64, whatever the features; where it may decide, and where it must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from onestep.metrics import _memberships
from onestep.metrics._memberships import (
    _Balls,
    _Rounding,
    full_memberships,
    memberships,
    screened_memberships,
    single_distances,
)
from onestep.metrics._neighbours import prepared, squared_distances, squared_radii

WIDTHS = (8, 64, 2048)


def _cloud(images: int, *, width: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((images, width)).astype(np.float32)


def _clouds(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets that overlap, the generated one narrower."""
    return 0.9 * _cloud(300, width=width, seed=0), _cloud(350, width=width, seed=1)


def _lattice(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances that equal radii everywhere, around a centre that binary numbers do not hold."""
    draws = np.random.RandomState(2).randint(0, 3, (2, 300, width)).astype(np.float32)
    return draws[0, :299], draws[1]


def _copies(width: int) -> tuple[np.ndarray, np.ndarray]:
    generated, real = _clouds(width)
    return np.concatenate([generated, generated[:50], real[:40]]), np.concatenate([real, real[100:150], real[100:150]])


def _one_repeated(width: int) -> tuple[np.ndarray, np.ndarray]:
    _, real = _clouds(width)
    return np.repeat(real[7:8], 60, axis=0), real


def _line(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank 1."""
    return tuple(_cloud(300, width=1, seed=seed) * _cloud(1, width=width, seed=9) for seed in (3, 4))


def _outlier(width: int) -> tuple[np.ndarray, np.ndarray]:
    generated, real = _clouds(width)
    generated[3] *= 1e4
    real[5] *= 1e5
    return generated, real


def _tied_but_for_the_twelfth_digit(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Generated images at a radius of a real one, a little nearer or farther: float32 cannot tell which."""
    real = 100 * _cloud(60, width=width, seed=5).astype(np.float64)
    distances = np.linalg.norm(real[:, None] - real[None], axis=2)
    third = np.argsort(distances, axis=1)[:, 3]
    away = real - real[third]  # from the neighbour through the centre to the other side
    share = 1 + np.where(np.arange(60) % 2, 1, -1) * 10.0 ** -np.random.RandomState(6).uniform(3, 10, 60)
    return real + away * share[:, None], real


SETS = {
    "clouds": _clouds,
    "a common mean": lambda width: tuple(rows + 1000 for rows in _clouds(width)),
    "means far apart": lambda width: (_clouds(width)[0] + 1e4, _clouds(width)[1]),
    "a set and itself": lambda width: (_clouds(width)[1], _clouds(width)[1]),
    "copies": _copies,
    "one image repeated": _one_repeated,
    "a lattice": _lattice,
    "a line": _line,
    "an outlier": _outlier,
    "the twelfth digit": _tied_but_for_the_twelfth_digit,
    "small": lambda width: tuple(1e-20 * rows for rows in _clouds(width)),
    "large": lambda width: tuple(1e20 * rows.astype(np.float64) for rows in _clouds(width)),
    "all the same": lambda width: (np.ones((20, width), np.float32), np.ones((30, width), np.float32)),
}


def _prepared(name: str, width: int) -> tuple[Tensor, Tensor]:
    return prepared(*map(torch.from_numpy, SETS[name](width)), arithmetic="float64")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SETS)
def test_the_answers_are_those_of_double_precision(name, width):
    sets = _prepared(name, width)
    for neighbours in (1, 3):
        expected = full_memberships(*sets, neighbours=neighbours, memory_mib=64)
        for memory_mib in (1, 64):
            found = memberships(*sets, neighbours=neighbours, memory_mib=memory_mib)
            assert all(map(torch.equal, found, expected)), (neighbours, memory_mib)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SETS)
def test_no_distance_and_no_radius_is_farther_off_than_the_bound(name, width):
    generated, real = _prepared(name, width)
    squares = torch.cat([generated, real]).square().sum(dim=1)
    if not 2.0**-60 < squares.max() < 2.0**100:
        assert name in ("small", "large", "all the same")
        return
    rounding = _Rounding.of(torch.float32, width=width, largest=float(squares.max()))
    ((_, exact),) = squared_distances(generated, real, memory_mib=64)
    ((_, single),) = single_distances(generated.float(), real.float(), memory_mib=64)
    for norms in (generated.square().sum(dim=1)[:, None], real.square().sum(dim=1)):
        assert ((single - exact).abs() <= rounding.relative * (4 * norms + 3 * exact) + rounding.floor).all()
    balls = _Balls.around(real, neighbours=3, memory_mib=64, rounding=rounding)
    radii = squared_radii(real, neighbours=3, memory_mib=64)
    assert (balls.lower <= radii).all() and (radii <= balls.upper).all()


def test_single_precision_alone_would_answer_otherwise():
    sets = _prepared("the twelfth digit", 64)
    expected = full_memberships(*sets, neighbours=3, memory_mib=64)
    alone = full_memberships(*(rows.float() for rows in sets), neighbours=3, memory_mib=64)
    assert not all(map(torch.equal, alone, expected))


@pytest.mark.parametrize("width", WIDTHS)
def test_it_decides_where_features_are_ordinary_and_gives_up_where_nothing_is_gained(width, monkeypatch):
    compared = []
    original = _memberships._compared
    monkeypatch.setattr(
        _memberships,
        "_compared",
        lambda points, *args, **named: compared.append(len(points)) or original(points, *args, **named),
    )
    assert screened_memberships(*_prepared("clouds", width), neighbours=3, memory_mib=64) is not None
    assert sum(compared) < 0.1 * 650
    assert screened_memberships(*_prepared("a lattice", width), neighbours=3, memory_mib=64) is None


def test_it_is_left_out_where_products_are_rounded_further():
    sets = _prepared("clouds", 8)
    assert _memberships._screening_pays(*sets)
    assert not _memberships._screening_pays(*(rows.half() for rows in sets))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert not _memberships._screening_pays(*sets)
    finally:
        torch.set_float32_matmul_precision(before)
