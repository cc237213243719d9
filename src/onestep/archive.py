"""Arrays on disk with a word about where they come from: .npz files that hold no pickles."""

from __future__ import annotations

import contextlib
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep.files import canonical_json, parse_json, read_json, regular_file, replacing, sha256_of_file
from onestep.shapes import misfit

_ANY: Mapping[str, Any] = {}
_SMALL = 2**30  # bytes; an .npz up to here may have been compressed as well as it likes
_LARGEST_RATIO = 100
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What zipfile and numpy raise for damaged members and headers.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    OSError,
    EOFError,
    SyntaxError,
    RuntimeError,  # encrypted, nested too deeply, a method that is not implemented
    MemoryError,
    OverflowError,
)


class Arrays(NamedTuple):
    """What an archive holds: arrays by name, and JSON-able facts about where they come from."""

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, about: Mapping[str, Any]) -> None:
    """Write an .npz atomically; equal content gives equal bytes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, about=np.array(canonical_json(about)), **dict(arrays))


def read_arrays(path: Path, names: Iterable[str] | None = None, *, about: Mapping[str, Any] = _ANY) -> Arrays:
    """Read what `write_arrays` wrote, of the arrays those of `names` that it has; None for all.

    ValueError: Another file, a damaged one, or facts of another shape than `about`, as in `shapes`.
    """
    regular_file(path)
    try:
        with _opened(path) as members:
            facts = parse_json(_array(*members["about"]).item())
            if found := misfit(facts, about):
                raise ValueError(f"about: {found}")
            chosen = [name for name in members if name != "about" and (names is None or name in names)]
            return Arrays({name: _array(*members[name]) for name in chosen}, facts)
    except _DAMAGE as error:
        fix = "delete it and run again to rebuild it"
        raise ValueError(f"{path}: not an archive of this pipeline ({_reason(error)}); {fix}") from error


def published_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray] | None:
    """Return those arrays of `names` that an .npz of another program contains; None if this pipeline wrote the file.

    ValueError: The file is no .npz, is damaged, or an entry of `names` is not a plain array.
    """
    regular_file(path)
    try:
        with _opened(path) as members:
            return None if "about" in members else {name: _array(*members[name]) for name in names if name in members}
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a whole .npz of plain arrays ({_reason(error)}); fetch it again") from error


def array_names(path: Path) -> frozenset[str]:
    """Return the names of the arrays in an .npz. ValueError: The file is no .npz, or is damaged."""
    regular_file(path)
    try:
        with _opened(path) as members:
            return frozenset(members)
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a whole .npz of plain arrays ({_reason(error)}); fetch it again") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]]]:
    """Yield the members of an .npz by the names of their arrays; ValueError where they are too large or not unique."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size, limit = sum(each.file_size for each in members), max(_SMALL, _LARGEST_RATIO * path.stat().st_size)
        if size > limit:
            raise ValueError(f"it unpacks to {size:,} bytes, more than the {limit:,} that are read of its size")
        found = {each.filename.removesuffix(".npy"): (archive, each) for each in members}
        if len(found) < len(members):
            raise ValueError("two of its arrays have one name")
        if min((each.header_offset for each in members), default=0):
            raise ValueError("other bytes precede its arrays")
        yield found


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Return one array, after a comparison of the size that its header announces with the bytes that are there."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{member.filename}: got format {version}, expected {' or '.join(map(str, _HEADERS))}")
        shape, _, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename}: got objects, expected plain numbers")
        if min(shape, default=0) < 0 or file.tell() + dtype.itemsize * math.prod(shape) != member.file_size:
            raise ValueError(f"{member.filename}: got {member.file_size:,} bytes for {dtype} {list(shape)}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"lacks {text}" if isinstance(error, KeyError) else text


def digest_of(archive: Path) -> str:
    """Return the SHA-256 of a dataset archive, read from its card where there is one."""
    card = archive.with_suffix(".json")
    return read_json(card, {"sha256": str})["sha256"] if card.exists() else sha256_of_file(archive)
