"""EDM's transforms of pictures into squares."""

from __future__ import annotations

import re

import numpy as np
import pytest

from onestep.data._pixels import center_crop, scale


@pytest.mark.golden
def test_transforms_are_the_references(golden):
    recorded = golden.load("dataset_transforms.npz")
    transforms = {"scale": scale, "center_crop": center_crop}
    seen = set()
    for key, expected in recorded.items():
        match = re.fullmatch(r"(.+)/(scale|center_crop)_(\d+)x\3", key)
        if match:
            picture, name, side = match.groups()
            found = transforms[name](recorded[picture], resolution=int(side))
            np.testing.assert_array_equal(found, expected, err_msg=key)
            seen |= {picture, name, key}
    assert seen - {"scale", "center_crop"} == set(recorded), "a recording was not compared"
    assert {"scale", "center_crop"} <= seen


def test_a_square_of_the_right_size_stays():
    picture = np.random.RandomState(0).randint(256, size=(16, 16, 3)).astype(np.uint8)
    assert np.array_equal(scale(picture, resolution=16), picture)
    assert np.array_equal(center_crop(picture, resolution=16), picture)


def test_a_crop_takes_the_centre():
    picture = np.zeros((4, 8), np.uint8)
    picture[:, 2:6] = 200
    assert (center_crop(picture, resolution=4) == 200).all()


def test_grey_stays_grey_when_scaled():
    assert scale(np.zeros((6, 9), np.uint8), resolution=4).shape == (4, 4)


@pytest.mark.parametrize("picture", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.float32)])
def test_other_pictures_are_refused(picture):
    for transform in (scale, center_crop):
        with pytest.raises(ValueError, match=r"uint8 \[H, W\] or \[H, W, 3\], found"):
            transform(picture, resolution=4)
