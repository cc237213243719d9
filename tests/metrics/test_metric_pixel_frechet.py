"""Frechet distance of averaged pixels: closed forms, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from onestep.metrics.pixel_frechet import PixelFrechet


def _images(seed, *, count=60, channels=3, side=16, least=0, most=200):
    return np.random.default_rng(seed).integers(least, most, (count, channels, side, side), dtype=np.uint8)


def test_brighter_images_are_at_the_squared_difference_of_their_means():
    images = _images(0)
    assert PixelFrechet()(pixels=images, real_pixels=images)["frechet"] == pytest.approx(0, abs=1e-9)
    found = PixelFrechet(size=4)(pixels=images + np.uint8(51), real_pixels=images)["frechet"]
    assert found == pytest.approx(0.2**2 * 3 * 4 * 4, rel=1e-6)


def test_one_number_an_image_has_the_distance_of_two_normal_laws():
    one, other = _images(1, channels=1, most=100), _images(2, channels=1, count=90, least=50, most=250)
    means = [each.mean(axis=(1, 2, 3)) / 255 for each in (one, other)]
    expected = (means[0].mean() - means[1].mean()) ** 2 + (means[0].std(ddof=1) - means[1].std(ddof=1)) ** 2
    assert PixelFrechet(size=1)(pixels=one, real_pixels=other)["frechet"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("pixels", "real"),
    [(_images(0, side=4), _images(1, side=4)), (_images(0, channels=1), _images(1)), (_images(0, count=1), _images(1))],
    ids=["too small", "other channels", "one image"],
)
def test_what_cannot_be_compared_is_refused(pixels, real):
    with pytest.raises(ValueError, match="got"):
        PixelFrechet()(pixels=pixels, real_pixels=real)
