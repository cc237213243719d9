"""Opens a pickle for the stack machine: the file mapped into memory, its kind checked, and what it may cost counted."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onestep.checkpoints._stack_machine import Budget, Vocabulary, interpret, refuse_name

# Networks of the published sizes take about 90,000 steps each, and a file may hold three.
_STEPS = 1_000_000
# Bytes are counted when decoded (protocol 2), when copied, and once for each name of a tensor: tied weights have more.
_LARGEST_UNFOLDING = 4

_SIGNATURES = {
    b"PK": "a zip archive (TorchScript, or torch.save since 1.6)",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "a gzip archive, to be unpacked first",
    b"<": "a web page, as a failed download leaves it",
}


def read_pickle_file(path: Path, *, vocabulary: Callable[[Budget], Vocabulary]) -> tuple[Any, Budget]:
    """Read the one pickle (protocols 2 to 5) that a file consists of.

    Args:
        path: The file.
        vocabulary: Makes the list of what the pickle may name, given what it may cost.

    Returns:
        Its value, and what is left of the budget.

    Raises:
        ValueError: The file is no such pickle, is damaged, or names a global that is not on the list.
        OSError: The file cannot be opened.
    """
    size = path.stat().st_size
    if size == 0:
        raise ValueError("the file is empty")
    budget = Budget(steps=_STEPS, copies=_LARGEST_UNFOLDING * size)
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    _check_signature(bytes(data[:256]))
    document, end = interpret(data, 0, vocabulary=vocabulary(budget), budget=budget)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow the end of the pickle, so something was added to the file")
    return document, budget


def _check_signature(head: bytes) -> None:
    """Raise ValueError unless the file begins as a pickle of protocol 2 or later."""
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature):
            raise ValueError(f"the file is {what}, not a pickle")
    if head[8:10] == b'{"':
        raise ValueError("the file is safetensors already, which needs no conversion, not a pickle")
    if old := re.match(rb"c([\w.]+)\n([\w.]+)\n", head):
        refuse_name(old[1].decode(), old[2].decode())
    if head[:1] != b"\x80":
        raise ValueError(f"the file is not a pickle of protocol 2 to 5: it begins with {head[:32]!r}")
