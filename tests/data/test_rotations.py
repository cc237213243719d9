"""Images in four rotations, which are their classes."""

import numpy as np
from PIL import Image

from onestep.data.images import Images


def test_every_image_is_there_in_four_rotations(tmp_path):
    pixels = np.random.RandomState(0).randint(256, size=(3, 16, 16, 3)).astype(np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{number}.png")
    dataset = Images(source=tmp_path, resolution=16, transform="scale", labels="rotations")
    assert (len(dataset), dataset.classes) == (12, 4)
    for index in range(12):
        image, label = dataset[index]
        expected = np.rot90(pixels[index // 4], index % 4).transpose(2, 0, 1)
        assert label == index % 4
        assert np.array_equal(image, expected)
    assert dataset.stamp(4) != dataset.stamp(5)
