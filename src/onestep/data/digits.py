"""The scanned handwritten digits of Alpaydin and Kaynak (UCI, 10.24432/C50P49), as scikit-learn ships them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from onestep.config.constraints import power_of_two
from onestep.files import regular_file

__all__ = ["Digits"]

_SIDE = 8  # pixels of the scans
_DARKEST = 16  # ink in a pixel: 0 to 16 dots of a 4x4 block
_LARGEST = 2**24  # bytes; the file has 0.3 MB
_WAY_OUT = "delete the file and fetch it again"


class Digits:
    """1,797 grey handwritten digits (ink is white), 8x8 with 17 levels, scaled to 256 levels and a larger square.

    The enlargement is bicubic: it keeps the strokes smooth and the ground black, where Lanczos rings and bilinear
    blurs. `source` is scikit-learn's `digits.csv.gz`: 64 numbers 0 to 16 and the digit, in each line. `resolution` is a
    power of two from 8 on; another, or a damaged file, is a ValueError.
    """

    channels = 1
    classes = 10
    class_names = tuple("0123456789")
    unreadable_share = 0.0

    def __init__(self, *, source: Path | str, resolution: Annotated[int, power_of_two(8, 1_024)]) -> None:
        if resolution < _SIDE or resolution & (resolution - 1):
            raise ValueError(f"resolution must be 8, 16, 32 or another power of two above, found {resolution}")
        self.resolution = resolution
        self._ink, self._labels = _read(regular_file(source))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        grey = np.rint(self._ink[index] * (255 / _DARKEST)).astype(np.uint8)
        picture = Image.fromarray(grey).resize((self.resolution, self.resolution), Image.Resampling.BICUBIC)
        return np.array(picture)[None], int(self._labels[index])


def _read(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the scans, [N, 8, 8] in 0..16, and the digits, [N]."""
    try:
        with gzip.open(source, "rb") as packed:
            content = packed.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"it unpacks to more than {_LARGEST:,} bytes")
        table = np.array([line.split(",") for line in content.decode("ascii").splitlines()], dtype=np.int64)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise ValueError(f"{source}: cannot be read as gzipped lines of integers ({error}); {_WAY_OUT}") from error
    if table.ndim != 2 or table.shape[1] != _SIDE**2 + 1:
        raise ValueError(f"{source}: found a table {list(table.shape)}, expected [N, 65]; {_WAY_OUT}")
    ink, labels = table[:, :-1].reshape(-1, _SIDE, _SIDE), table[:, -1]
    for name, numbers, highest in (("pixels", ink, _DARKEST), ("labels", labels, Digits.classes - 1)):
        if numbers.min() < 0 or numbers.max() > highest:
            found = f"{numbers.min()} to {numbers.max()}"
            raise ValueError(f"{source}: {name} reach from {found}, expected 0 to {highest}; {_WAY_OUT}")
    return ink, labels
