"""The scanned digits."""

from __future__ import annotations

import gzip
from importlib import resources

import numpy as np
import pytest

from onestep.data.digits import Digits


@pytest.fixture(scope="module")
def shipped():
    return resources.files("sklearn") / "datasets" / "data" / "digits.csv.gz"


def test_holds_the_digits_that_scikit_learn_loads(shipped):
    from sklearn.datasets import load_digits

    expected = load_digits()
    digits = Digits(source=shipped, resolution=8)
    assert (len(digits), digits.channels, digits.classes) == (len(expected.target), 1, 10)
    pixels = np.stack([digits[i][0][0] for i in range(len(digits))])
    assert np.array_equal(np.rint(pixels / 255 * 16), expected.images)
    assert [digits[i][1] for i in range(len(digits))] == expected.target.tolist()


@pytest.mark.parametrize("resolution", [16, 32])
def test_enlarging_keeps_the_picture(shipped, resolution):
    small, large = Digits(source=shipped, resolution=8), Digits(source=shipped, resolution=resolution)
    factor = resolution // 8
    for index in range(0, len(large), 97):
        pixels, label = large[index]
        assert pixels.shape == (1, resolution, resolution)
        assert label == small[index][1]
        blocks = pixels[0].reshape(8, factor, 8, factor).mean(axis=(1, 3))
        assert np.corrcoef(blocks.ravel(), small[index][0].ravel())[0, 1] > 0.98


@pytest.mark.parametrize("resolution", [4, 12, 0, -16])
def test_an_odd_resolution_is_refused(shipped, resolution):
    with pytest.raises(ValueError, match=f"power of two above, found {resolution}"):
        Digits(source=shipped, resolution=resolution)


def _line(*, ink: str = "0", label: str = "0", count: int = 64) -> str:
    return ",".join([ink] * count + [label]) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found a table"),
        (_line(count=63), r"found a table \[1, 64\], expected \[N, 65\]"),
        (_line() + _line(count=60), "gzipped lines of integers"),
        (_line(ink="1.5"), "gzipped lines of integers"),
        (_line(ink="17"), "pixels reach from 17 to 17, expected 0 to 16"),
        (_line(ink="-1"), "pixels reach from -1"),
        (_line(label="10"), "labels reach from 10 to 10, expected 0 to 9"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, message):
    source = tmp_path / "digits.csv.gz"
    source.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(ValueError, match=f"digits.csv.gz: .*{message}.*fetch it again"):
        Digits(source=source, resolution=16)


def test_a_damaged_file_is_refused(tmp_path, shipped):
    source = tmp_path / "digits.csv.gz"
    whole = shipped.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[:-100], whole[:5], b"not gzip", bytes(flipped)):
        source.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as gzipped lines of integers"):
            Digits(source=source, resolution=16)
    with pytest.raises(ValueError, match="No such file"):
        Digits(source=tmp_path / "absent", resolution=16)
