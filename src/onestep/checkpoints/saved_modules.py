"""Stubs for the globals that saved networks and arrays name: inert records in place of torch's and numpy's objects.

The list covers EDM's persistence format (NVlabs/edm, `torch_utils/persistence.py`), a saved `torch.nn.Embedding`, and
numpy arrays, under the names of old and new torch and numpy and of pickle protocols 2 to 5.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep.checkpoints.safe_pickle import Budget, expect, kind, naming, read_pickle, refuse_state, stub

_PERSISTENCE_VERSION = 6
_MOST_DIMENSIONS = 16
# torch counts in 64 bits; this also bounds tensors without numbers, which no storage does.
_LARGEST_NUMBER = 2**40
# The format of torch.save before the zip files: five pickles, a count (int64) and the raw numbers.
_MAGIC, _FORMAT_VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {"b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}
_ARRAYS = ("f4", "f8", "i8")  # of scales and statistics; EDM's pickles have no other
_STORAGES = {
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
_CONTAINERS = ("ModuleDict", "Sequential", "ModuleList")


class Module:
    """A pickled network or part of one: its class name, for the record only, and its attributes, unchecked."""

    __slots__ = ("class_name", "state")

    def __init__(self, class_name: str, state: dict[Any, Any]) -> None:
        self.class_name, self.state = class_name, state

    def __setstate__(self, state: Any) -> None:
        """Take the attributes of a container, which arrive after it."""
        if self.state or type(state) is not dict:
            refuse_state(self, state)
        self.state = state


@dataclass(frozen=True, kw_only=True, eq=False)
class Storage:
    """Numbers of a tensor, whose count matches their bytes (little-endian)."""

    dtype: torch.dtype
    count: int
    raw: memoryview

    __setstate__ = refuse_state

    def load(self) -> Tensor:
        """Copy the numbers into a tensor [count]."""
        octets = torch.empty(len(self.raw), dtype=torch.uint8)
        if len(self.raw):
            octets.numpy()[:] = np.frombuffer(self.raw, np.uint8)
        return octets != 0 if self.dtype is torch.bool else octets.view(self.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """A strided view of a storage that lies within it; offset and strides are counted in numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    __setstate__ = refuse_state


class StoredDtype:
    """A numpy number type; its byte order arrives after it."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        """Take numpy's state of a plain number type: eight values, the second is the byte order."""
        order = _text(state[1]) if type(state) is tuple and len(state) == 8 else None
        if order not in ("<", ">", "=", "|"):
            refuse_state(self, state)
        self.order = order.replace("|", "=")


class StoredArray:
    """A numpy array of bytes (uint8 [N, M], as long as its reader checks), or of numbers; all arrives after it."""

    __slots__ = ("code", "order", "raw", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.code, self.order, self.raw = "u1", "=", b""

    def __setstate__(self, state: Any) -> None:
        """Take shape, number type and bytes, once."""
        match state:
            case (1, tuple(shape), StoredDtype() as dtype, False, bytes(raw)) if self.shape is None:
                if _is_array(shape, dtype.code, raw):
                    self.shape, self.code, self.order, self.raw = shape, dtype.code, dtype.order, raw
                    return
        refuse_state(self, state)

    def load(self) -> np.ndarray:
        """Return a copy of the numbers in their shape, in the byte order of this machine."""
        numbers = np.frombuffer(self.raw, np.dtype(self.order + self.code)).reshape(self.shape or ())
        return numbers.astype(self.code)


def _is_array(shape: tuple[Any, ...], code: str, raw: bytes) -> bool:
    """Return whether a shape is one of bytes, or of as many numbers of a type of `_ARRAYS` as there are bytes for."""
    if len(shape) > _MOST_DIMENSIONS or not all(type(each) is int and 0 <= each <= _LARGEST_NUMBER for each in shape):
        return False
    if code == "u1":
        return len(shape) == 2
    return code in _ARRAYS and math.prod(shape) * int(code[1]) == len(raw)


def allowed_globals(budget: Budget) -> Mapping[str, type]:
    """Return the stubs by global name; their copies and nested pickles are charged to `budget`."""
    constructors: dict[str, Callable[..., Any]] = {
        "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
        "dnnlib.util.EasyDict": lambda: {},
        "collections.OrderedDict": lambda: {},
        "builtins.set": lambda items: _set(items, budget),
        "__builtin__.set": lambda items: _set(items, budget),
        "torch.Size": lambda lengths: expect(lengths, tuple),
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda tensor, *_: expect(tensor, StoredTensor),
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: expect(tensor, StoredTensor),
        "torch.storage._load_from_bytes": lambda blob: _storage(expect(blob, bytes), budget),
        "_codecs.encode": lambda text, encoding: _bytes(expect(text, str), encoding, budget),
        "numpy.dtype": _dtype,
        "numpy.ndarray": _uncalled,
        **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
        **{f"torch.nn.modules.container.{name}": partial(Module, name, {}) for name in _CONTAINERS},
        "torch.nn.modules.sparse.Embedding": partial(Module, "Embedding", {}),
    }
    stubs = {name: stub(name, construct) for name, construct in constructors.items()}
    # dill's name for a built-in type, of which a saved module has only `set`.
    types, dill = {"set": stubs["builtins.set"]}, "dill._dill._load_type"
    return {**stubs, dill: stub(dill, lambda name: types[expect(name, str)])}


def _text(value: Any) -> Any:
    """Return a text of Python 2, which is read as bytes, as a text of Python 3."""
    return value.decode("latin-1") if type(value) is bytes else value


def _uncalled(*arguments: Any) -> Any:
    raise ValueError(f"a type is called with {len(arguments)} arguments, which no saved array or tensor does")


def _persistent_object(meta: Any) -> Module:
    match meta:
        case {"type": "class", "version": int(version), "class_name": str(class_name), "state": dict(state)}:
            if version == _PERSISTENCE_VERSION:
                return Module(class_name, state)
    raise ValueError(f"a persistent object (class, version {_PERSISTENCE_VERSION}, class_name, state) is expected")


def _set(items: Any, budget: Budget) -> set[Any]:
    budget.step(len(expect(items, list)))
    if not all(type(item) in (str, bytes) or (type(item) is int and abs(item) < 2**31) for item in items):
        raise ValueError("a set holds neither texts nor small integers")
    return set(items)


def _bytes(text: str, encoding: Any, budget: Budget) -> bytes:
    """Return the bytes that protocol 2 writes as a text."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are encoded by {kind(encoding)}, expected 'latin1'")
    budget.copy(len(text))
    return text.encode("latin-1")


def _dtype(code: Any, *_: Any) -> StoredDtype:
    if type(_text(code)) is not str or _text(code) not in _DTYPES:
        raise ValueError(f"a number type of numpy is {str(code)[:20]!r}, expected one of {', '.join(sorted(_DTYPES))}")
    return StoredDtype(_text(code))


def _scalar(stored: Any, raw: Any) -> float | int | bool:
    dtype = np.dtype(expect(stored, StoredDtype).order + stored.code)
    if len(expect(raw, bytes)) != dtype.itemsize:
        raise ValueError(f"a number of numpy has {len(raw)} bytes, expected {dtype.itemsize}")
    return np.frombuffer(raw, dtype)[0].item()


def _array(subtype: Any, shape: Any, code: Any) -> StoredArray:
    if expect(subtype, type).__qualname__ != "ndarray" or shape != (0,) or _text(code) != "b":
        raise ValueError("an array is not made as numpy makes it: empty, then filled")
    return StoredArray()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    """Refuse a view that reaches beyond its storage or has numbers that torch cannot hold."""
    available = expect(storage, Storage).count
    dimensions, strides = len(expect(size, tuple)), len(expect(stride, tuple))
    if dimensions > _MOST_DIMENSIONS or strides != dimensions:
        found = f"{dimensions} dimensions and {strides} strides"
        raise ValueError(f"a tensor has {found}, expected equal, at most {_MOST_DIMENSIONS}")
    if not all(type(number) is int and 0 <= number <= _LARGEST_NUMBER for number in (offset, *size, *stride)):
        raise ValueError("a tensor's offset, sizes and strides are not integers from 0 to 2**40")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    count, without_zeros = math.prod(size), math.prod(length or 1 for length in size)
    if offset > available or without_zeros > (available if count else _LARGEST_NUMBER):
        raise ValueError(f"a tensor has more numbers than its storage of {available}")
    if count and last >= available:
        raise ValueError(f"a tensor reaches beyond its storage of {available} numbers")
    return StoredTensor(storage=storage, offset=offset, size=size, stride=stride)


@dataclass(frozen=True)
class _Declared:
    """The persistent id of a storage: its class, its key, its count of numbers."""

    type_name: str
    key: str
    count: int

    __setstate__ = refuse_state


@naming("tensor storage")
def _storage(blob: bytes, budget: Budget) -> Storage:
    file = io.BytesIO(blob)
    # The five pickles: magic number, version, sizes of the machine, persistent id, list of keys.
    magic, version, machine, declared, keys = (
        read_pickle(file, allowed=_STORAGE_TYPES, budget=budget, persistent=_declared) for _ in range(5)
    )
    if type(magic) is not int or type(version) is not int or (magic, version) != (_MAGIC, _FORMAT_VERSION):
        raise ValueError("the magic number or the version is not that of torch's format before the zip files")
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise ValueError("the numbers are not marked as little-endian")
    if type(declared) is not _Declared or type(keys) is not list or keys != [declared.key]:
        raise ValueError(f"got {kind(declared)} and {kind(keys)}, expected a storage and the list of its one key")
    dtype, rest = _STORAGES[declared.type_name], memoryview(blob)[file.tell() :]
    count, raw = int.from_bytes(rest[:8], "little", signed=True), rest[8:]
    if len(rest) < 8 or count != declared.count or count * dtype.itemsize != len(raw):
        found = f"{declared.count} numbers of {dtype} are declared and {count} counted"
        raise ValueError(f"{found}, but {len(raw)} bytes are there")
    return Storage(dtype=dtype, count=count, raw=raw)


def _declared(identity: Any) -> _Declared:
    match identity:
        case ("storage", type(__qualname__=name), str(key), str(), int(count), None):
            return _Declared(name, key, count)
    raise ValueError("the persistent id is not that of a storage: ('storage', type, key, place, count, None)")


_STORAGE_TYPES = {f"torch.{name}": stub(f"torch.{name}", _uncalled) for name in _STORAGES}
