"""Pickles read with an allow-list: nothing in a file is imported, looked up or executed.

A stream is read twice. The first pass walks its opcodes with `pickletools`, makes no object, and refuses opcodes that
do more than hold data, keys that are slow to hash, and more objects than a network has. The second pass is Python's
own unpickler, whose `find_class` returns stubs of an allow-list and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar, cast

from onestep.files import regular_file

# Opcodes counted per file. A network of the published sizes takes about 90,000, and a file may hold three.
_MOST_STEPS = 1_000_000
# Bytes made per byte of the file: numbers are copied once, tied weights and protocol 2 take more.
_MOST_COPIES = 4
_LONGEST_NAME = 512

# Keys whose hash costs no more than reading them. Tuples may double at each level; large integers may share a hash.
_KEYS = {
    *("BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_ALLOWED = _KEYS | {
    *("PROTO", "FRAME", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "LONG1", "BINFLOAT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
}
_EXTRA_STEPS = {"EMPTY_SET": 4, "BINPUT": 1, "LONG_BINPUT": 1, "MEMOIZE": 1}  # by the memory of what they make
_ENCODE = "_codecs encode"  # the call that makes the bytes of protocol 2

_SIGNATURES = {
    b"PK": "a zip archive (TorchScript, or torch.save since 1.6)",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "a gzip archive, to be unpacked first",
    b"<": "a web page, as a failed download leaves it",
}


@contextlib.contextmanager
def naming(place: Path | str, *, fix: str = "") -> Iterator[None]:
    """Put the place before, and what to do after the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(f"{place}: "):
            raise
        raise ValueError(f"{place}: {error}{fix and '; '}{fix}") from None


class Budget:
    """Limits on what one file may cost: steps (opcodes, and nodes visited later) and bytes made from it."""

    def __init__(self, *, file_size: int) -> None:
        self._steps, self._copies = _MOST_STEPS, _MOST_COPIES * file_size

    def step(self, count: int = 1) -> None:
        """Count steps; too many are a ValueError."""
        self._steps -= count
        if self._steps < 0:
            raise ValueError("the file holds far more objects than a network has")

    def copy(self, size: int) -> None:
        """Count `size` bytes before they are allocated; more than the file itself can hold are a ValueError."""
        self._copies -= size
        if self._copies < 0:
            raise ValueError("the file's objects unfold to more bytes than the file can hold")


_T = TypeVar("_T")


def stub(name: str, construct: Callable[..., Any]) -> type:
    """Return a class in place of the global `name`; calling it calls `construct`."""
    module, _, qualname = name.rpartition(".")

    def new(_: type, *arguments: Any) -> Any:
        return construct(*arguments)

    return type(qualname, (), {"__new__": new, "__setstate__": refuse_state, "__module__": module})


def refuse_state(target: Any, state: Any) -> NoReturn:
    """Raise ValueError for a BUILD opcode: the `__setstate__` of every stub that takes no state."""
    raise ValueError(f"it sets the state of {kind(target)} to {kind(state)}, which no saved network does")


def kind(value: Any) -> str:
    """Return a word for `value` that is safe to print: never its content."""
    if isinstance(value, type):
        return f"the name {value.__module__}.{value.__qualname__}"
    return f"a value of type {type(value).__name__}"


def expect(value: Any, expected: type[_T]) -> _T:
    """Return `value` if its type is exactly `expected`; else raise ValueError."""
    if type(value) is not expected:
        raise ValueError(f"got {kind(value)}, expected {expected.__name__}")
    return value


def read_pickle_file(path: Path, *, allowed: Callable[[Budget], Mapping[str, type]]) -> tuple[Any, Budget]:
    """Read the one pickle (protocols 2 to 5) that a file consists of; return its value and the rest of the budget.

    `allowed` makes the stubs from the budget. Anything else, or a global without a stub, is a ValueError.
    """
    size = regular_file(path).stat().st_size
    if size == 0:
        raise ValueError("the file is empty")
    budget = Budget(file_size=size)
    stubs = allowed(budget)
    with open(path, "rb") as file:
        _check_signature(file.read(256))
        # Mapped, so that a length beyond the end of the file allocates nothing; unmapped before objects are made.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            end = _check(mapped, size=size, allowed=stubs, budget=budget, persistent=False)
        if end != size:
            raise ValueError(f"{size - end} bytes follow the end of the pickle")
        file.seek(0)
        return _load(file, allowed=stubs, persistent=None), budget


def read_pickle(
    file: io.BytesIO, *, allowed: Mapping[str, type], budget: Budget, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Read one pickle from the position of `file`, and leave the position after it; ValueError if there is none.

    `allowed` are the stubs by global name; `persistent` makes a value of a persistent id, None refuses those.
    """
    start = file.tell()
    _check(file, size=len(file.getbuffer()), allowed=allowed, budget=budget, persistent=persistent is not None)
    file.seek(start)
    return _load(file, allowed=allowed, persistent=persistent)


class _Unpickler(pickle.Unpickler):
    stubs: Mapping[str, type]
    persistent: Callable[[Any], Any] | None

    def find_class(self, module: str, name: str) -> type:
        return self.stubs.get(f"{module}.{name}") or _refuse_global(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        assert self.persistent is not None, "the first pass refuses persistent ids"
        return self.persistent(pid)


def _load(file: IO[bytes], *, allowed: Mapping[str, type], persistent: Callable[[Any], Any] | None) -> Any:
    unpickler = _Unpickler(file, encoding="bytes")
    unpickler.stubs, unpickler.persistent = allowed, persistent
    try:
        return unpickler.load()
    except (pickle.UnpicklingError, TypeError, AttributeError, EOFError, LookupError, OverflowError) as error:
        raise ValueError(f"the pickle is damaged ({' '.join(str(error).split())[:200]})") from None
    except (MemoryError, RecursionError):
        raise ValueError("the file's objects take more memory than there is") from None


def _check(
    file: mmap.mmap | io.BytesIO, *, size: int, allowed: Mapping[str, type], budget: Budget, persistent: bool
) -> int:
    """Walk the opcodes of one pickle; return the position after it."""
    walk = _Walk()
    argument: Any
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
            budget.step(1 + _EXTRA_STEPS.get(opcode.name, 0))
            if opcode.name in ("GLOBAL", "INST") and argument.replace(" ", ".", 1) not in allowed:
                _refuse_global(argument.replace(" ", ".", 1))
            if opcode.name not in _ALLOWED or (opcode.name == "BINPERSID" and not persistent):
                raise ValueError(f"the opcode {opcode.name} is not used by saved networks")
            if opcode.name == "PROTO" and not 2 <= argument <= 5:
                raise ValueError(f"the pickle protocol is {argument}, expected 2 to 5")
            if opcode.name == "FRAME" and argument > size - file.tell():
                raise ValueError(f"a frame of {argument} bytes reaches beyond the end, so the file is truncated")
            walk.apply(opcode, argument)
    except ValueError as error:
        end = file.tell()
        raise ValueError(f"before byte {end}: {' '.join(str(error).split())[:600]}") from None
    except MemoryError:
        raise ValueError("a value of the file takes more memory than there is") from None
    return file.tell()


class _Walk:
    """The stack of a pickle without its objects: for each, whether its hash is cheap, or that it makes bytes."""

    def __init__(self) -> None:
        self._stack: list[bool | str] = []
        self._marks: list[int] = []
        self._memo: dict[int, bool | str] = {}

    def apply(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Carry out one opcode; refuse one that takes what is not there, or sets a key that is slow to hash."""
        name, before = opcode.name, opcode.stack_before
        if name == "MARK":
            self._marks.append(len(self._stack))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._remember(len(self._memo) if argument is None else argument)
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise ValueError(f"the object {argument} is recalled and was never defined")
            self._stack.append(self._memo[argument])
        else:
            marked = pickletools.markobject in before
            if marked and not self._marks:
                raise ValueError("values are collected without a mark, so the pickle is damaged")
            items = self._pop(len(self._stack) - self._marks.pop()) if marked else []
            operands = self._pop(before.index(pickletools.markobject) if marked else len(before))
            keys = {"SETITEMS": items[::2], "ADDITEMS": items, "SETITEM": operands[1:2]}.get(name, [])
            if not all(key is True for key in keys):
                raise ValueError("a key is neither a text nor a small integer")
            makes_bytes = name == "REDUCE" and operands[0] == _ENCODE
            made = _ENCODE if name == "GLOBAL" and argument == _ENCODE else name in _KEYS or makes_bytes
            self._stack += [made] * len(opcode.stack_after)
        if name == "STOP" and (self._stack or self._marks):
            raise ValueError("the pickle ends with values left on its stack, so it is damaged")

    def _remember(self, index: int) -> None:
        # The unpickler allocates a table up to the largest index; writers count from 0, those of Python 2 from 1.
        if index > len(self._memo) + 1:
            raise ValueError(f"the object {index} is defined after only {len(self._memo)} others")
        (self._memo[index],) = self._pop(1)
        self._stack.append(self._memo[index])

    def _pop(self, count: int) -> list[bool | str]:
        first = len(self._stack) - count
        if first < (self._marks[-1] if self._marks else 0):
            raise ValueError("a value is taken from an empty stack, so the pickle is damaged")
        operands = self._stack[first:]
        del self._stack[first:]
        return operands


def _check_signature(head: bytes) -> None:
    """Raise ValueError unless the file begins as a pickle of protocol 2 or later."""
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature):
            raise ValueError(f"the file is {what}, not a pickle")
    if head[8:10] == b'{"':
        raise ValueError("the file is safetensors already, which needs no conversion, not a pickle")
    if old := re.match(rb"c([\w.]+)\n([\w.]+)\n", head):
        _refuse_global(f"{old[1].decode()}.{old[2].decode()}")
    if head[:1] != b"\x80":
        raise ValueError(f"the file is not a pickle of protocol 2 to 5: it begins with {head[:32]!r}")


def _refuse_global(name: str) -> NoReturn:
    text = name[:_LONGEST_NAME]
    raise ValueError(f"it names the global {text!r}, which is not on the list of what networks need; nothing was run")
