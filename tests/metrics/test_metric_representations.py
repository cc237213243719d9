"""Frechet distances of several networks relative to held-out images: values, and what has none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from onestep.metrics.representations import Representations


def _rows(seed, *, count, width, mean=0.0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal((count, width)) * scale + mean).astype(np.float32)


def _frechet(one, other):
    one, other = one.astype(np.float64), other.astype(np.float64)
    a, b = np.cov(one.T), np.cov(other.T)
    return np.square(one.mean(0) - other.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)


def _sets(networks):
    generated = {name: _rows(1, count=90, width=d, mean=0.3, scale=s) for name, d, s in networks}
    real = {name: _rows(2, count=120, width=d, scale=s) for name, d, s in networks}
    held_out = {name: _rows(3, count=70, width=d, scale=s) for name, d, s in networks}
    return {"generated": generated, "real": real, "held_out": held_out}


def test_it_is_the_mean_of_the_ratios_of_the_networks():
    sets = _sets([("inner", 3, 1.0), ("outer", 5, 40.0)])
    found = Representations()(**sets)
    ratios = []
    for name in ("inner", "outer"):
        own = _frechet(sets["generated"][name], sets["real"][name])
        apart = _frechet(sets["held_out"][name], sets["real"][name])
        assert found[f"generated_{name}"] == pytest.approx(own, rel=1e-6)
        assert found[f"held_out_{name}"] == pytest.approx(apart, rel=1e-6)
        assert found[f"relative_{name}"] == pytest.approx(own / apart, rel=1e-6)
        ratios.append(own / apart)
    assert found["relative"] == pytest.approx(np.mean(ratios), rel=1e-6)


def test_held_out_images_have_the_value_1_and_the_scale_of_a_network_does_not_matter():
    sets = _sets([("only", 4, 1.0)])
    assert Representations()(**sets | {"generated": sets["held_out"]})["relative"] == pytest.approx(1)
    larger = {role: {"only": rows["only"] * 64} for role, rows in sets.items()}
    assert Representations()(**larger)["relative"] == pytest.approx(Representations()(**sets)["relative"], rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"held_out": {"only": _rows(2, count=120, width=4)}},
        {"held_out": {"only": _rows(3, count=1, width=4)}},
        {"generated": {"only": _rows(1, count=50, width=5)}},
        {"generated": {"only": np.full((9, 4), np.nan, dtype=np.float32)}},
    ],
    ids=["no distance", "one image", "another width", "not finite"],
)
def test_what_has_no_ratio_is_refused(change):
    with pytest.raises(ValueError, match="got|not finite"):
        Representations()(**_sets([("only", 4, 1.0)]) | change)
