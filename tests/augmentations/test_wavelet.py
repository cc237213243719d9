"""The filter is the wavelet that it is said to be, and doubling and halving undo each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onestep.augmentations._geometry import REACH, SYM6, double, halve, plane_rotation, plane_shift, warp


def test_the_filter_is_orthonormal_and_has_six_vanishing_moments():
    taps = np.array(SYM6)
    assert taps.sum() == pytest.approx(2**0.5, abs=1e-14)
    for shift in range(6):
        overlap = (taps[: len(taps) - 2 * shift] * taps[2 * shift :]).sum()
        assert overlap == pytest.approx(float(shift == 0), abs=1e-11)
    places = np.arange(len(taps)) - (len(taps) - 1) / 2
    for moment in range(6):
        assert (taps * (-1.0) ** np.arange(len(taps)) * places**moment).sum() == pytest.approx(0, abs=1e-9)


def test_the_filter_is_the_least_asymmetric_of_its_kind():
    # Of all filters with these moments, the phase of this one is nearest to that of a shift.
    frequencies = np.linspace(0, np.pi / 2, 64)
    response = np.exp(-1j * np.outer(frequencies, np.arange(len(SYM6)))) @ np.array(SYM6)
    phase = np.unwrap(np.angle(response))
    slope = (phase @ frequencies) / (frequencies @ frequencies)
    assert np.abs(phase - slope * frequencies).max() < 0.12


def test_halving_undoes_doubling():
    images = torch.randn(2, 3, 20, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    doubled = double(images)
    assert doubled.shape == (2, 3, 40, 34)
    inside = halve(doubled[:, :, 1:-1, 1:-1])
    rim = REACH // 2
    torch.testing.assert_close(inside, images[:, :, rim:-rim, rim:-rim], rtol=0, atol=1e-9)


def test_a_smooth_image_is_turned_as_its_formula():
    side = 32
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(place, place, indexing="ij")

    def wave(x, y):
        return torch.cos(0.3 * x + 0.1 * y) + torch.sin(0.2 * y)

    angle = torch.tensor([0.4])
    inverse = plane_shift(torch.tensor([0.3]), torch.tensor([-0.6])) @ plane_rotation(angle)
    found = warp(wave(x, y)[None, None], inverse)[0, 0]
    cos, sin = angle.double().cos(), angle.double().sin()
    wanted = wave(cos * x - sin * y + 0.3, sin * x + cos * y - 0.6)
    centre = slice(8, 24)
    torch.testing.assert_close(found[centre, centre], wanted[centre, centre], rtol=0, atol=2e-2)
