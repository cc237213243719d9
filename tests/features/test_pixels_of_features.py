"""What published networks see: each resize as its publisher computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from onestep.features._networks import (
    as_rgb,
    covering_square,
    normalised,
    resized_as_in_tensorflow,
    resized_by_pillow,
)


def _pixels(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


def _as_in_tensorflow(image, size):
    """Resize one channel [H, W] pixel by pixel, in double precision."""
    height, width = image.shape
    out = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            out[i, j] = upper + (lower - upper) * (y - top)
    return out


@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 9), (80, 64)])
def test_the_bilinear_resize_is_that_of_tensorflow_1(height, width):
    pixels = _pixels(2, 1, height, width)
    found = resized_as_in_tensorflow(pixels, size=37)
    for index in range(2):
        wanted = _as_in_tensorflow(pixels[index, 0].double().numpy(), 37)
        np.testing.assert_allclose(found[index, 0], wanted, atol=2e-3)


def test_an_image_of_the_right_size_stays():
    pixels = _pixels(2, 3, 37, 37)
    assert torch.equal(resized_as_in_tensorflow(pixels, size=37), pixels.float())
    assert torch.equal(resized_by_pillow(pixels, height=37, width=37), pixels)
    assert torch.equal(covering_square(pixels, size=37), pixels)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (48, 65), (100, 333)])
def test_the_square_is_the_middle_of_pillows_resize(height, width):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    pixels = _pixels(1, 3, height, width)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    wanted = np.asarray(Compose([Resize(56, InterpolationMode.BICUBIC), CenterCrop(56)])(image))
    np.testing.assert_array_equal(covering_square(pixels, size=56)[0].permute(1, 2, 0), wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_resize_is_the_same_in_any_number_of_threads(threads):
    pixels, before = _pixels(7, 3, 32, 32), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = resized_by_pillow(pixels, height=56, width=40)
    finally:
        torch.set_num_threads(before)
    for image, resized in zip(pixels, found, strict=True):
        wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((40, 56), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(resized.permute(1, 2, 0), np.asarray(wanted))


def test_normalised_values_have_the_mean_and_deviation_taken_out():
    values = torch.tensor([0.0, 127.5, 255.0]).reshape(1, 3, 1, 1)
    found = normalised(values, mean=(0.0, 0.5, 0.5), std=(1.0, 1.0, 0.25))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.0, 2.0]))


def test_grey_is_repeated_and_anything_else_is_refused():
    grey = _pixels(2, 1, 4, 4)
    assert torch.equal(as_rgb(grey), grey.repeat(1, 3, 1, 1))
    for wrong in (grey.float(), _pixels(2, 4, 4, 4), grey[0]):
        with pytest.raises(ValueError, match=r"^pixels: got (float32|uint8) \[.* uint8 \[B, 3, H, W\]"):
            as_rgb(wrong)
