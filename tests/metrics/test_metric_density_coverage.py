"""Density and coverage: the formulas written out, the two directions, memory."""

from __future__ import annotations

import numpy as np
import pytest

from onestep.metrics._features import rows_at_a_time
from onestep.metrics.density_coverage import DensityCoverage


def _clouds(generated: int, real: int, *, width: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    shapes = {"generated": (generated, width), "real": (real, width)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _written_out(generated: np.ndarray, real: np.ndarray, *, neighbours: int) -> dict[str, float]:
    """Both sums, one pair of images at a time."""
    hits, covered = 0, 0
    for centre in real:
        radius = sorted(np.linalg.norm(real - centre, axis=1))[neighbours]  # the first is the image itself
        inside = [np.linalg.norm(image - centre) <= radius for image in generated]
        hits += sum(inside)
        covered += any(inside)
    return {"density": hits / (neighbours * len(generated)), "coverage": covered / len(real)}


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_the_numbers_are_those_of_the_formulas(neighbours):
    sets = {name: rows.astype(np.float64) for name, rows in _clouds(60, 80, width=4).items()}
    sets["generated"] *= 0.8
    found = DensityCoverage(neighbours=neighbours)(**sets)
    assert found == pytest.approx(_written_out(**sets, neighbours=neighbours), rel=1e-12)
    assert 0 < found["coverage"] < 1


def test_a_hand_made_case():
    real = np.array([[0.0], [1.0], [3.0], [10.0]])  # radii to the nearest: 1, 1, 2, 7
    generated = np.array([[-1.0], [2.5], [2.9], [17.5]])  # inside of 1, 1, 1 and no ball: of 0; of 3; of 3
    assert DensityCoverage(neighbours=1)(generated=generated, real=real) == {"density": 3 / 4, "coverage": 2 / 4}


def test_one_real_image_repeated_is_dense_and_covers_next_to_nothing():
    real = _clouds(1, 300)["real"]
    repeated = np.repeat(real[7:8], 200, axis=0)
    found = DensityCoverage()(generated=repeated, real=real)
    assert found["density"] >= 1 / 5 and 1 / 300 <= found["coverage"] < 0.1
    back = DensityCoverage()(generated=real, real=repeated)
    assert back == {"density": 200 / (5 * 300), "coverage": 1.0}


def test_sets_that_agree_have_density_one_and_sets_apart_none():
    sets = _clouds(2000, 2000, width=4)
    found = DensityCoverage()(**sets)
    assert found["density"] == pytest.approx(1, abs=0.05)
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.02)  # 1 - 2^-k for large sets that agree
    assert DensityCoverage()(generated=sets["real"] + 100, real=sets["real"]) == {"density": 0.0, "coverage": 0.0}


def test_an_outlier_of_the_generator_changes_little():
    sets = _clouds(500, 500)
    found = DensityCoverage()(**sets)
    sets["generated"][0] = 50.0
    assert DensityCoverage()(**sets) == pytest.approx(found, abs=0.01)


def test_memory_changes_no_result_and_bounds_the_table():
    sets = _clouds(900, 1500, width=16)
    few, many = (DensityCoverage(memory_mib=size)(**sets) for size in (1, 4096))
    assert few == many
    for images in (1_500, 50_000):
        assert 4 * 8 * images * rows_at_a_time(images, itemsize=8, memory_mib=64) <= 64 * 2**20


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"neighbours": 9}, {}, "real features: .* 9 images.* 10"),
        ({}, {"generated": np.zeros((0, 8))}, "generated features: .* 0 images.* 1"),
        ({}, {"real": np.zeros((9, 7))}, "features: .*8.*7"),
        ({}, {"generated": np.full((9, 8), np.nan)}, "generated features: 9 of 9 images"),
        ({"memory_mib": 0}, {}, "neighbours and memory_mib: got 5 and 0"),
    ],
)
def test_what_has_no_balls_is_refused(options, change, message):
    with pytest.raises(ValueError, match=message):
        DensityCoverage(**options)(**_clouds(9, 9) | change)
