"""Reads the blob in which torch keeps the numbers of a pickled tensor: its format before the zip files.

Five pickles stand back to back (a magic number, a version, the machine's sizes, one persistent id, one list of keys),
then the count of numbers as a little-endian int64, then the raw numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep.checkpoints._stack_machine import Arguments, Budget, Name, Vocabulary, interpret, kind, names_for

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Storage:
    """Numbers still in the file, whose count has been checked against the bytes that are there.

    Attributes:
        dtype: Of the numbers.
        count: How many.
        raw: Their bytes, little-endian; a view into the file.
    """

    dtype: torch.dtype
    count: int
    raw: memoryview

    def load(self) -> Tensor:
        """Copy the numbers out of the file; shape [count]."""
        octets = torch.empty(len(self.raw), dtype=torch.uint8)
        if len(self.raw):
            octets.numpy()[:] = np.frombuffer(self.raw, np.uint8)
        return octets != 0 if self.dtype is torch.bool else octets.view(self.dtype)


@dataclass(frozen=True, kw_only=True)
class _Declared:
    """What the fourth pickle says of the storage: `FloatStorage`, the storage's key, how many numbers."""

    type_name: str
    key: str
    count: int


def read_storage(blob: bytes | memoryview, *, budget: Budget) -> Storage:
    """Read a blob; nothing in it is executed, and its numbers are not copied yet.

    Raises:
        ValueError: It is not in torch's format before the zip files, or its sizes disagree with its bytes.
    """
    try:
        return _read(memoryview(blob), budget)
    except ValueError as error:
        raise ValueError(f"in the tensor storage that ends here, {error}") from None


def _read(blob: memoryview, budget: Budget) -> Storage:
    position, parts = 0, []
    for _ in range(5):
        part, position = interpret(blob, position, vocabulary=_VOCABULARY, budget=budget)
        parts.append(part)
    magic, version, machine, declared, keys = parts
    if (magic, version) != (_MAGIC, _VERSION) or type(magic) is not int:
        raise ValueError("the magic number or the version is not that of torch's format before the zip files")
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise ValueError("the numbers are not marked as little-endian, which is what is read")
    if type(declared) is not _Declared:
        raise ValueError(f"a tensor storage is expected, {kind(declared)} is there")
    if type(keys) is not list or keys != [declared.key]:
        raise ValueError(f"the list of storages does not hold the one that is declared, {declared.key[:40]!r}")
    return _sized(declared, blob[position:])


def _sized(declared: _Declared, rest: memoryview) -> Storage:
    """Match the declared count with the count before the numbers, and with the numbers."""
    dtype = _DTYPES[declared.type_name]
    count, raw = int.from_bytes(rest[:8], "little", signed=True), rest[8:]
    if len(rest) < 8 or count != declared.count:
        raise ValueError(f"{declared.count} numbers are declared, but the raw part says {count}")
    if count * dtype.itemsize != len(raw):
        raise ValueError(
            f"{count} numbers of {dtype} need {count * dtype.itemsize} bytes, but {len(raw)} are there, "
            "so the storage is truncated, or its type or size is not what it declares"
        )
    return Storage(dtype=dtype, count=count, raw=raw)


def _declared(identity: Any) -> _Declared:
    match identity:
        case ("storage", Name() as name, str() as key, str(), int() as count, None):
            return _Declared(type_name=name.text.removeprefix("torch."), key=key, count=count)
    raise ValueError("the persistent id is not that of a tensor storage: ('storage', type, key, place, count, None)")


def _not_called(arguments: Arguments) -> Any:
    raise ValueError(f"it calls a storage type with {len(arguments)} arguments, which no saved tensor does")


def _no_state(target: Any, state: Any) -> None:
    raise ValueError(f"it sets the state of {kind(target)}, which no saved tensor does")


_VOCABULARY = Vocabulary(
    names=names_for({f"torch {name}": _not_called for name in _DTYPES}), set_state=_no_state, persistent=_declared
)
