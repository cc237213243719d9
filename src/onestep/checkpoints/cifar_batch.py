"""The batches of CIFAR-10's Python archive, pickles of Python 2, read without executing anything in them.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). Each of `data_batch_1` to
`data_batch_5` is a dict with `data`, a numpy array uint8 [10000, 3072] (red, green, blue; row by row), and `labels`, a
list of 10,000 classes. Copies that Python 3 wrote (protocols 2 to 4) are read too.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np

from onestep.checkpoints.safe_pickle import Budget, kind, read_pickle
from onestep.checkpoints.saved_modules import StoredArray, allowed_globals

CLASSES = 10
SIDE = 32
_NUMBERS = 3 * SIDE**2


class CifarBatch(NamedTuple):
    """The images of one batch.

    Attributes:
        pixels: uint8 [N, 3, 32, 32], read-only.
        labels: int64 [N], in 0..9.
    """

    pixels: np.ndarray
    labels: np.ndarray


def read_cifar_batch(content: bytes) -> CifarBatch:
    """Read a batch, given the content of its file.

    Raises:
        ValueError: It is not such a pickle, is damaged, or names a global that is not allowed.
    """
    if content[:1] != b"\x80":
        raise ValueError(f"not a pickle of protocol 2 or later: it begins with {content[:16]!r}")
    budget, file = Budget(file_size=len(content)), io.BytesIO(content)
    document = read_pickle(file, allowed=allowed_globals(budget), budget=budget)
    if rest := file.read():
        raise ValueError(f"{len(rest)} bytes follow the end of the pickle")
    if type(document) is not dict:
        raise ValueError(f"it holds {kind(document)}, not a dict with 'data' and 'labels'")
    # Texts of Python 2 are read as bytes.
    entries = {key.decode("latin-1") if type(key) is bytes else key: value for key, value in document.items()}
    pixels = _pixels(entries.get("data"))
    return CifarBatch(pixels, _labels(entries.get("labels"), count=len(pixels)))


def _pixels(array: Any) -> np.ndarray:
    if type(array) is not StoredArray:
        raise ValueError(f"under 'data' it holds {kind(array)}, not an array of numpy")
    if len(array.shape) != 2 or array.shape[1] != _NUMBERS or not array.shape[0]:
        raise ValueError(f"its pixels are an array {list(array.shape)}, expected [N, {_NUMBERS}]")
    if len(array.raw) != array.shape[0] * _NUMBERS:
        raise ValueError(f"its pixels {list(array.shape)} are {len(array.raw)} bytes, so it is damaged")
    return np.frombuffer(array.raw, np.uint8).reshape(-1, 3, SIDE, SIDE)


def _labels(labels: Any, *, count: int) -> np.ndarray:
    if type(labels) is not list or len(labels) != count:
        given = f"{len(labels)} labels" if type(labels) is list else kind(labels)
        raise ValueError(f"under 'labels' it holds {given}, expected a list of {count}, one per image")
    if not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise ValueError(f"among its labels is one that is none of the classes 0 to {CLASSES - 1}")
    return np.array(labels, dtype=np.int64)
