"""The two places where pixels and images meet."""

from __future__ import annotations

import pytest
import torch

from onestep.data import to_images, to_pixels


@pytest.mark.golden
def test_quantises_as_the_reference(golden):
    recorded = golden.load("schedules.npz")
    pixels = to_pixels(torch.from_numpy(recorded["quant_in"]))
    assert pixels.dtype == torch.uint8
    assert pixels.tolist() == recorded["quant_out"].tolist()


def test_every_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = to_images(levels)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(to_pixels(images), levels)


def test_what_is_out_of_range_is_clipped():
    assert to_pixels(torch.tensor([-9.0, -1.01, 1.0, 9.0])).tolist() == [0, 0, 255, 255]
