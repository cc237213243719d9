"""Reads the batches of CIFAR-10's Python archive, pickles of Python 2, without executing anything in them.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009); each of `data_batch_1` to
`data_batch_5` is a pickled dict with `data`, a numpy array uint8 [10000, 3072] (red, green, blue; row by row), and
`labels`, a list of 10,000 classes. Texts of Python 2, and what Python 3 makes of them in protocols 2 to 4, are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from onestep.checkpoints._stack_machine import Arguments, Budget, Name, Vocabulary, interpret, kind, names_for
from onestep.checkpoints._vocabulary import Dtype, dtype_named, encode_latin1, set_byte_order

CLASSES = 10
SIDE = 32
_NUMBERS = 3 * SIDE**2
_STEPS = 500_000  # a batch takes some 40,000
_LARGEST_UNFOLDING = 4


class CifarBatch(NamedTuple):
    """The pictures of one batch.

    Attributes:
        pixels: uint8 [N, 3, 32, 32]; a view of the file's content where that is possible, not to be written to.
        labels: int64 [N], in 0..9.
    """

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(eq=False)
class _Array:
    """A numpy array: empty when made, its shape and bytes arrive later, with BUILD."""

    shape: tuple[int, ...] = ()
    raw: bytes | memoryview = b""


def read_cifar_batch(content: bytes) -> CifarBatch:
    """Read a batch.

    Args:
        content: The file as it stands in the archive.

    Raises:
        ValueError: It is no such pickle, is damaged, or names a global that is not on the list.
    """
    budget = Budget(steps=_STEPS, copies=_LARGEST_UNFOLDING * len(content))
    if content[:1] != b"\x80":
        raise ValueError(f"not a pickle of protocol 2 or later: it begins with {content[:16]!r}")
    document, end = interpret(memoryview(content), 0, vocabulary=_vocabulary(budget), budget=budget)
    if end != len(content):
        raise ValueError(f"{len(content) - end} bytes follow the end of the pickle, so something was added to it")
    if type(document) is not dict:
        raise ValueError(f"it holds {kind(document)}, not a dict with 'data' and 'labels'")
    entries = dict(_by_text(document))
    return CifarBatch(_pixels(entries), _labels(entries))


def _by_text(document: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the entries with texts as keys; Python 3 may have kept those of Python 2 as bytes."""
    for key, value in document.items():
        yield key.decode("latin-1") if type(key) is bytes else key, value


def _pixels(entries: Mapping[Any, Any]) -> np.ndarray:
    array = entries.get("data")
    if type(array) is not _Array:
        raise ValueError(f"under 'data' it holds {kind(array)}, not an array of numpy")
    if len(array.shape) != 2 or array.shape[1] != _NUMBERS or not array.shape[0]:
        raise ValueError(f"its pixels are an array {list(array.shape)}, expected [N, {_NUMBERS}]")
    if len(array.raw) != array.shape[0] * _NUMBERS:
        raise ValueError(f"its pixels {list(array.shape)} are {len(array.raw)} bytes, so it is damaged")
    return np.frombuffer(array.raw, np.uint8).reshape(-1, 3, SIDE, SIDE)


def _labels(entries: Mapping[Any, Any]) -> np.ndarray:
    labels, count = entries.get("labels"), entries["data"].shape[0]
    if type(labels) is not list or len(labels) != count:
        given = f"{len(labels)} labels" if type(labels) is list else kind(labels)
        raise ValueError(f"under 'labels' it holds {given}, expected a list of {count}, one a picture")
    if not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise ValueError(f"among its labels is one that is none of the classes 0 to {CLASSES - 1}")
    return np.array(labels, dtype=np.int64)


def _vocabulary(budget: Budget) -> Vocabulary:
    """Return what a batch may say: one kind of array, under the names that it had over the years."""
    return Vocabulary(
        names=names_for(
            {
                "numpy.core.multiarray _reconstruct": _empty_array,
                "numpy._core.multiarray _reconstruct": _empty_array,
                "numpy ndarray": _not_called,
                "numpy dtype": dtype_named,
                "_codecs encode": lambda arguments: encode_latin1(arguments, budget),
            }
        ),
        set_state=_set_state,
        persistent=_no_persistent,
    )


def _empty_array(arguments: Arguments) -> _Array:
    match arguments:
        case (Name(text="numpy.ndarray"), (0,), "b" | b"b"):
            return _Array()
    raise ValueError("it makes an array in another way than numpy does")


def _not_called(arguments: Arguments) -> Any:
    raise ValueError(f"it calls numpy.ndarray with {len(arguments)} arguments, which no saved array does")


def _set_state(target: Any, state: Any) -> None:
    """Complete an array, or its number type."""
    match target, state:
        case (_Array(raw=b""), (1, tuple() as shape, Dtype(code="u1"), False, raw)) if _is_shape(shape):
            target.shape, target.raw = shape, _as_bytes(raw)
        case (Dtype(), tuple()):
            set_byte_order(target, state)
        case _:
            raise ValueError(f"it sets the state of {kind(target)}, and not as numpy does for an array of uint8")


def _is_shape(shape: tuple[Any, ...]) -> bool:
    return all(type(length) is int and length >= 0 for length in shape)


def _as_bytes(raw: Any) -> bytes | memoryview:
    """Return an array's content; a short one of Python 2 has been read as text."""
    if type(raw) is str:
        return raw.encode("latin-1")
    if type(raw) not in (bytes, memoryview):
        raise ValueError(f"the content of an array is {kind(raw)}, not bytes")
    return raw


def _no_persistent(identity: Any) -> Any:
    raise ValueError("it refers to an object outside the file, which no batch does")
