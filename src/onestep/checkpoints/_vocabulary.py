"""The globals that EDM's saved networks name, each with an inert stand-in for what it would have made.

The list holds the names of old and new torch and numpy and of pickle protocols 2 to 5; there is no other way from a
file to a function. A second, shorter list is that of a saved table of class embeddings. Stand-ins are records and plain
Python values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from onestep.checkpoints._stack_machine import (
    Arguments,
    Budget,
    LongText,
    Name,
    Vocabulary,
    check_keys,
    kind,
    names_for,
)
from onestep.checkpoints._storage import Storage, read_storage

# Of the persistence format, in which every network class is pickled as its source text and its state.
_VERSION = 6
_MOST_DIMENSIONS = 16
# Torch counts in 64 bits; this also holds for tensors without numbers, which no storage bounds.
_LARGEST_NUMBER = 2**40
_SCALARS = {
    **{"b1": "?", "f2": "e", "f4": "f", "f8": "d"},
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
}


@dataclass(eq=False)
class Module:
    """A pickled network or part of one: the name of its class, and the attributes it had.

    Attributes:
        class_name: As the file says; nothing depends on it.
        state: Attributes by name, as the file says: nothing in it has been checked.
    """

    class_name: str
    state: dict[Any, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """A view of a storage, whose extent has been checked.

    Attributes:
        storage: Where its numbers are.
        offset: Index of its first number.
        size: Its shape.
        stride: Numbers from one index to the next, by dimension.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return _product(self.size)


@dataclass(eq=False)
class Dtype:
    """A numpy number type; its byte order arrives later, with BUILD."""

    code: str
    order: str = "="


def edm_vocabulary(budget: Budget) -> Vocabulary:
    """Return what an EDM pickle may say; what its constructors copy and unfold is charged to `budget`."""
    constructors = _tensor_constructors(budget) | {
        "torch_utils.persistence _reconstruct_persistent_obj": _persistent_object,
        "dnnlib.util EasyDict": _empty_dict,
        "torch.nn.modules.container ModuleDict": lambda arguments: _empty_module("ModuleDict", arguments),
        "torch.nn.modules.container Sequential": lambda arguments: _empty_module("Sequential", arguments),
        "torch.nn.modules.container ModuleList": lambda arguments: _empty_module("ModuleList", arguments),
        "torch Size": _size,
        "numpy._core.multiarray scalar": _scalar,
        "numpy.core.multiarray scalar": _scalar,
        "numpy dtype": dtype_named,
    }
    return Vocabulary(names=names_for(constructors), set_state=_set_state, persistent=_no_persistent)


def embedding_vocabulary(budget: Budget) -> Vocabulary:
    """Return what a pickled `torch.nn.Embedding` may say, as torch or, through dill, StyleGAN-XL's authors saved it."""
    constructors = _tensor_constructors(budget) | {
        "torch.nn.modules.sparse Embedding": lambda arguments: _empty_module("Embedding", arguments),
        "dill._dill _load_type": lambda arguments: _type_by_name(arguments, names),
    }
    names = names_for(constructors)
    return Vocabulary(names=names, set_state=_set_state, persistent=_no_persistent)


def _tensor_constructors(budget: Budget) -> dict[str, Callable[[Arguments], Any]]:
    """Return what the parts of any saved torch module are made by."""
    return {
        "collections OrderedDict": _empty_dict,
        "torch._utils _rebuild_tensor_v2": _tensor,
        "torch._utils _rebuild_parameter": _parameter,
        "torch._utils _rebuild_parameter_with_state": _parameter,
        "torch.storage _load_from_bytes": lambda arguments: _storage(arguments, budget),
        "builtins set": lambda arguments: _set(arguments, budget),
        "__builtin__ set": lambda arguments: _set(arguments, budget),
        "_codecs encode": lambda arguments: encode_latin1(arguments, budget),
    }


def _refuse(what: str, arguments: Arguments) -> NoReturn:
    given = ", ".join(kind(argument) for argument in arguments[:8])
    raise ValueError(f"{what} is expected, but what is there is made of ({given})")


def _persistent_object(arguments: Arguments) -> Module:
    match arguments:
        case ({"type": "class", "version": version, "class_name": str() as class_name, "state": dict() as state},):
            if type(version) is not int or version != _VERSION:
                raise ValueError(f"an object of persistence version {_VERSION} is expected, this one has another")
            return Module(class_name, state)
    _refuse("a persistent object, one dict of type 'class', version, class_name and state,", arguments)


def _empty_module(class_name: str, arguments: Arguments) -> Module:
    if arguments:
        _refuse(f"an empty {class_name}", arguments)
    return Module(class_name, {})


def _type_by_name(arguments: Arguments, names: Mapping[str, Name]) -> Name:
    """Return what dill's word for a built-in type stands for; of these a saved module has but one."""
    match arguments:
        case ("set",):
            return names["builtins set"]
    _refuse("the built-in type 'set'", arguments)


def _empty_dict(arguments: Arguments) -> dict[Any, Any]:
    if arguments:
        _refuse("an empty dict", arguments)
    return {}


def _set(arguments: Arguments, budget: Budget) -> set[Any]:
    match arguments:
        case (list() as items,):
            budget.step(len(items))
            return set(check_keys(items))
    _refuse("a set, made of one list,", arguments)


def _size(arguments: Arguments) -> tuple[Any, ...]:
    match arguments:
        case (tuple() as lengths,):
            return lengths
    _refuse("a shape, made of one tuple,", arguments)


def _parameter(arguments: Arguments) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, bool(), *_):
            return tensor
    _refuse("a parameter, made of a tensor and whether it learns,", arguments)


def _storage(arguments: Arguments, budget: Budget) -> Storage:
    match arguments:
        case (bytes() | memoryview() as blob,):
            return read_storage(blob, budget=budget)
    _refuse("a tensor storage, made of bytes,", arguments)


def _tensor(arguments: Arguments) -> StoredTensor:
    match arguments:
        case (Storage() as storage, int() as offset, tuple() as size, tuple() as stride, bool(), *_):
            _check_extent(storage, offset, size, stride)
            return StoredTensor(storage=storage, offset=offset, size=size, stride=stride)
    _refuse("a tensor, made of storage, offset, size, stride and whether it learns,", arguments)


def _check_extent(storage: Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> None:
    """Raise ValueError unless the view lies in its storage and has no more numbers than that."""
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise ValueError(
            f"a tensor has {len(size)} sizes, {len(stride)} strides; at most {_MOST_DIMENSIONS} of each are read"
        )
    if not all(type(number) is int and 0 <= number <= _LARGEST_NUMBER for number in (offset, *size, *stride)):
        raise ValueError("a tensor's offset, sizes and strides are not integers from 0 to 2**40")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    count = _product(size)
    without_zeros = _product(tuple(length or 1 for length in size))
    if offset > storage.count or without_zeros > (storage.count if count else _LARGEST_NUMBER):
        raise ValueError(f"a tensor has more numbers than its storage of {storage.count}")
    if count and last >= storage.count:
        raise ValueError(f"a tensor reaches beyond its storage of {storage.count} numbers")


def _product(size: tuple[int, ...]) -> int:
    product = 1
    for length in size:
        product *= length
    return product


def dtype_named(arguments: Arguments) -> Dtype:
    """Return the number type that numpy names by a code such as "u1".

    Raises:
        ValueError: It is none of the plain ones.
    """
    match arguments:
        case (str() as code, int(), int()) if code in _SCALARS:
            return Dtype(code)
    _refuse("a number type of numpy", arguments)


def _scalar(arguments: Arguments) -> float | int | bool:
    match arguments:
        case (Dtype() as dtype, bytes() as raw):
            form = dtype.order + _SCALARS[dtype.code]
            if struct.calcsize(form) == len(raw):
                return struct.unpack(form, raw)[0]
    _refuse("a number of numpy, made of its type and its bytes,", arguments)


def encode_latin1(arguments: Arguments, budget: Budget) -> bytes:
    """Turn the text that stands for bytes in protocol 2 back into them.

    Raises:
        ValueError: The arguments are others, or unfold too far.
    """
    match arguments:
        case (str() as text, "latin1" | "latin-1"):
            budget.copy(len(text))
            return text.encode("latin-1")
        case (LongText() as text, "latin1" | "latin-1"):
            budget.copy(len(text.utf8))
            return str(text.utf8, "utf-8").encode("latin-1")
    _refuse("bytes, made of a text and 'latin1',", arguments)


def _set_state(target: Any, state: Any) -> None:
    """Complete one of the two records that arrive in two parts."""
    match target, state:
        case (Module(class_name="ModuleDict" | "Sequential" | "ModuleList" | "Embedding"), dict()) if not target.state:
            target.state = state
        case (Dtype(), tuple()):
            set_byte_order(target, state)
        case _:
            raise ValueError(f"it sets the state of {kind(target)} to {kind(state)}, which no saved network does")


def set_byte_order(target: Dtype, state: Arguments) -> None:
    """Complete a number type with the state that numpy gives it.

    Raises:
        ValueError: numpy gives no such state to a plain number type.
    """
    if len(state) != 8 or state[1] not in ("<", ">", "=", "|"):
        raise ValueError(f"it sets the state of {kind(target)} to {kind(state)}, which no saved network does")
    target.order = "=" if state[1] == "|" else state[1]


def _no_persistent(identity: Any) -> NoReturn:
    raise ValueError("it refers to an object outside the file, which no saved network does")
