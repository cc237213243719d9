"""Reads pickle streams without the pickle module: a small stack machine that knows data and a list of names.

The opcodes are those of Python's `pickletools` that hold data or name things; whatever else a pickle may ask for
(instances, extensions, attribute state) is refused. A name yields one of our own constructors from a list, or an
error: nothing is imported, looked up or called that the stream chooses.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

# Texts and bytes above this stay where they are in the file, until a constructor asks for them.
_SHORT = 4096
_LONGEST_NAME = 512

Arguments = tuple[Any, ...]


class Budget:
    """What one file may cost: steps (opcodes, and nodes visited later) and bytes copied out of it."""

    def __init__(self, *, steps: int, copies: int) -> None:
        self._steps, self._copies = steps, copies

    def step(self, count: int = 1) -> None:
        """Count steps.

        Raises:
            ValueError: There have been too many.
        """
        self._steps -= count
        if self._steps < 0:
            raise ValueError("the file holds far more objects than any network has")

    def copy(self, size: int) -> None:
        """Count `size` bytes that are about to be allocated.

        Raises:
            ValueError: Together they exceed what the file itself can hold.
        """
        self._copies -= size
        if self._copies < 0:
            raise ValueError("the file's objects unfold to more bytes than the file can hold")


@dataclass(frozen=True, eq=False)
class Name:
    """A global that is on the list: inert until called, and then one of our own functions runs."""

    text: str
    construct: Callable[[Arguments], Any]


@dataclass(frozen=True, eq=False)
class LongText:
    """A long text that nobody has read yet: source code, or in protocol 2 a blob."""

    utf8: memoryview


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a stream may say beyond plain data.

    Attributes:
        names: The list, by "module name"; made by `names_for`.
        set_state: Applies a BUILD to one of our records, or raises ValueError.
        persistent: Turns a persistent id into a value, or raises ValueError.
    """

    names: Mapping[str, Name]
    set_state: Callable[[Any, Any], None]
    persistent: Callable[[Any], Any]


def names_for(constructors: Mapping[str, Callable[[Arguments], Any]]) -> dict[str, Name]:
    """Return the list of names that constructors, each of the tuple of arguments, stand in for."""
    return {key: Name(key.replace(" ", "."), construct) for key, construct in constructors.items()}


def interpret(data: memoryview, start: int, *, vocabulary: Vocabulary, budget: Budget) -> tuple[Any, int]:
    """Read the one pickle that begins at byte `start`.

    Returns:
        Its value, and the first byte after it.

    Raises:
        ValueError: It is truncated or damaged, or asks for something that is not on the list.
    """
    machine = _Machine(data, start, vocabulary=vocabulary, budget=budget)
    return machine.run(), machine.position


def kind(value: Any) -> str:
    """Return a word for `value` that is safe to print: never its content."""
    return f"the name {value.text}" if isinstance(value, Name) else f"a value of type {type(value).__name__}"


class _Machine:
    """The state of one reading: position, stack, marks and memo."""

    def __init__(self, data: memoryview, position: int, *, vocabulary: Vocabulary, budget: Budget) -> None:
        self.data, self.position = data, position
        self.vocabulary, self.budget = vocabulary, budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Carry out opcodes until STOP; errors tell the byte."""
        while True:
            place = self.position
            try:
                self.budget.step()
                opcode = self.take(1)[0]
                if opcode == _STOP:
                    return self.result()
                _ACTIONS.get(opcode, _refuse_opcode)(self)
            except ValueError as error:
                raise ValueError(f"at byte {place}: {error}") from None

    def result(self) -> Any:
        value = self.pop()
        if self.stack or self.marks:
            raise ValueError("the pickle ends with unused values on its stack, so it is damaged")
        return value

    def take(self, count: int) -> memoryview:
        left = len(self.data) - self.position
        if count > left:
            raise ValueError(f"{count} bytes should follow but {left} are left, so the file is truncated or damaged")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        head = bytes(self.data[self.position : self.position + _LONGEST_NAME])
        length = head.find(b"\n")
        if length < 0:
            raise ValueError("a global's name does not end")
        self.position += length + 1
        return str(head[:length], "utf-8")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def top(self) -> Any:
        """Return the uppermost value; those below the latest mark are out of reach."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("a value is taken from an empty stack, so the pickle is damaged")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("values are collected without a mark, so the pickle is damaged")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def find(self, module: str, name: str) -> Name:
        listed = self.vocabulary.names.get(f"{module} {name}")
        if listed is None:
            refuse_name(module, name)
        return listed


def refuse_name(module: str, name: str) -> NoReturn:
    """Raise the ValueError for a global that is not on the list."""
    text = f"{module}.{name}"[:_LONGEST_NAME]
    raise ValueError(f"it names the global {text!r}, which is not on the list of what networks need; nothing was run")


def _refuse_opcode(machine: _Machine) -> NoReturn:
    opcode = machine.data[machine.position - 1]
    known = pickletools.code2op.get(chr(opcode))
    what = f"the pickle opcode {known.name}" if known else f"the byte {opcode:#04x}, which is no pickle opcode"
    raise ValueError(f"it uses {what}; saved networks do not, so the file is damaged or not one")


def _protocol(machine: _Machine) -> None:
    version = machine.number("<B")
    if not 2 <= version <= 5:
        raise ValueError(f"its pickle protocol is {version}; protocols 2 to 5 are read")


def _frame(machine: _Machine) -> None:
    length = machine.number("<Q")
    machine.take(length)
    machine.position -= length


def _text(machine: _Machine, form: str) -> None:
    view = machine.take(machine.number(form))
    machine.push(str(view, "utf-8") if len(view) <= _SHORT else LongText(view))


def _bytes(machine: _Machine, form: str) -> None:
    view = machine.take(machine.number(form))
    machine.push(bytes(view) if len(view) <= _SHORT else view)


def _python2_text(machine: _Machine, form: str) -> None:
    """Push a text of Python 2, which may be text or bytes: short ones as text, byte by byte; long ones are bytes."""
    size = machine.number(form)
    if size < 0:
        raise ValueError("a text has a negative length, so the pickle is damaged")
    view = machine.take(size)
    machine.push(str(view, "latin-1") if len(view) <= _SHORT else view)


def _long(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(machine.number("<B")), "little", signed=True))


def _tuple(machine: _Machine, length: int) -> None:
    values = [machine.pop() for _ in range(length)]
    machine.push(tuple(reversed(values)))


def _empty_set(machine: _Machine) -> None:
    # It takes four times the memory of any other object that one byte can ask for.
    machine.budget.step(4)
    machine.push(set())


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.top()
    if type(target) is not list:
        raise ValueError(f"it appends to {kind(target)}, not to a list")
    target.extend(items)


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.top()
    if type(target) is not dict or len(items) % 2:
        raise ValueError(f"it sets {len(items)} keys and values of {kind(target)}, not pairs of a dict")
    target.update(zip(check_keys(items[::2]), items[1::2], strict=True))


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, [key, value])


def _add_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.top()
    if type(target) is not set:
        raise ValueError(f"it adds to {kind(target)}, not to a set")
    target.update(check_keys(items))


def check_keys(keys: list[Any]) -> list[Any]:
    """Return `keys` if all are texts, bytes or 32-bit integers.

    Others are refused because the stream could choose them such that hashing them takes forever: a tuple of tuples
    that doubles at each level, or large numbers with equal hashes.
    """
    for key in keys:
        if type(key) not in (str, bytes) and not (type(key) is int and abs(key) < 2**31):
            raise ValueError(f"{kind(key)} is used as a key; texts and small integers are read")
    return keys


def _recall(machine: _Machine, form: str) -> None:
    index = machine.number(form)
    if index not in machine.memo:
        raise ValueError(f"it recalls the object {index}, which it never defined, so the pickle is damaged")
    machine.push(machine.memo[index])


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise ValueError(f"a global is named by {kind(module)} and {kind(name)}, not by two texts")
    machine.push(machine.find(module, name))


def _call(machine: _Machine) -> None:
    arguments, target = machine.pop(), machine.pop()
    if type(target) is not Name or type(arguments) is not tuple:
        raise ValueError(f"it calls {kind(target)} with {kind(arguments)}, not a name with a tuple")
    machine.push(target.construct(arguments))


def _build(machine: _Machine) -> None:
    state = machine.pop()
    machine.vocabulary.set_state(machine.top(), state)


_STOP = ord(".")
_PLAIN: dict[str, Callable[[_Machine], Any]] = {
    "\x80": _protocol,
    "\x95": _frame,
    "N": lambda m: m.push(None),
    "\x88": lambda m: m.push(True),
    "\x89": lambda m: m.push(False),
    "J": lambda m: m.push(m.number("<i")),
    "K": lambda m: m.push(m.number("<B")),
    "M": lambda m: m.push(m.number("<H")),
    "G": lambda m: m.push(m.number(">d")),
    "\x8a": _long,
    "X": lambda m: _text(m, "<I"),
    "\x8c": lambda m: _text(m, "<B"),
    "\x8d": lambda m: _text(m, "<Q"),
    "U": lambda m: _python2_text(m, "<B"),
    "T": lambda m: _python2_text(m, "<i"),
    "B": lambda m: _bytes(m, "<I"),
    "C": lambda m: _bytes(m, "<B"),
    "\x8e": lambda m: _bytes(m, "<Q"),
    "(": lambda m: m.marks.append(len(m.stack)),
    ")": lambda m: m.push(()),
    "]": lambda m: m.push([]),
    "}": lambda m: m.push({}),
    "\x8f": _empty_set,
    "\x85": lambda m: _tuple(m, 1),
    "\x86": lambda m: _tuple(m, 2),
    "\x87": lambda m: _tuple(m, 3),
    "t": lambda m: m.push(tuple(m.pop_to_mark())),
    "a": lambda m: _append(m, [m.pop()]),
    "e": lambda m: _append(m, m.pop_to_mark()),
    "s": _set_item,
    "u": lambda m: _set_items(m, m.pop_to_mark()),
    "\x90": lambda m: _add_items(m, m.pop_to_mark()),
    "q": lambda m: m.memo.update({m.number("<B"): m.top()}),
    "r": lambda m: m.memo.update({m.number("<I"): m.top()}),
    "\x94": lambda m: m.memo.update({len(m.memo): m.top()}),
    "h": lambda m: _recall(m, "<B"),
    "j": lambda m: _recall(m, "<I"),
    "c": lambda m: m.push(m.find(m.line(), m.line())),
    "i": lambda m: refuse_name(m.line(), m.line()),
    "\x93": _stack_global,
    "R": _call,
    "\x81": _call,
    "b": _build,
    "Q": lambda m: m.push(m.vocabulary.persistent(m.pop())),
}
_ACTIONS = {ord(opcode): action for opcode, action in _PLAIN.items()}
