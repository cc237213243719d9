"""Kinds of damage to a file, each a function of the file, of another of its kind, and of a seed."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

# A damage writes to a path that does not exist from the bytes of the whole file and those of another one of its kind.
Damage = Callable[[Path, bytes, bytes, random.Random], None]
_NESTED = 100_000


def _flip(first: float, last: float) -> Damage:
    """Return a damage of one bit at a place between these shares of the length."""

    def damage(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
        place = min(len(content) - 1, int(len(content) * seeded.uniform(first, last)))
        changed = bytearray(content)
        changed[place] ^= 1 << seeded.randrange(8)
        path.write_bytes(changed)

    return damage


def _digit(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    """Change one bit of a digit of a number, so that it is another digit."""
    places = [match.start() for match in re.finditer(rb"(?<=[ ,:\[\-.\d])\d(?=\d*[.,\n\]}e])", content)]
    place = seeded.choice(places or [0])
    changed = bytearray(content)
    changed[place] ^= 1
    path.write_bytes(changed)


def _truncated(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    path.write_bytes(content[: int(len(content) * seeded.uniform(0.3, 0.9))])


def _empty(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    path.write_bytes(b"")


def _doubled(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    path.write_bytes(content + content)


def _replaced(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    assert other != content, f"{path}: the other file is the same"
    path.write_bytes(other)


def _fifo(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    os.mkfifo(path)


def _directory(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    path.mkdir()


def _loop(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    path.symlink_to(path.name)


def _zeros(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    path.symlink_to("/dev/zero")


def _absent(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    """Leave nothing."""


def _text(text: str | bytes) -> Damage:
    def damage(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return damage


def _not_numbers(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    """Write NaN for every number of a text."""
    path.write_bytes(re.sub(rb"(?<=[ :\[,])-?\d+(\.\d+)?(e-?\d+)?(?=[,\n\]}])", b"NaN", content))


def _nan_npz(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    """Write one NaN into each array of float numbers."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = dict(archive)
    for array in arrays.values():
        if array.dtype.kind == "f":
            array.reshape(-1)[seeded.randrange(array.size)] = np.nan
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _nan_safetensors(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
    """Write one NaN into a tensor of float32."""
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    names = [name for name, entry in entries.items() if name != "__metadata__" and entry["dtype"] == "F32"]
    start, end = entries[seeded.choice(names)]["data_offsets"]
    place = 8 + length + start + 4 * seeded.randrange((end - start) // 4)
    path.write_bytes(content[:place] + np.float32(np.nan).tobytes() + content[place + 4 :])


def inside(member: str, damage: Damage) -> Damage:
    """Return the damage of one member of a zip; other damage than that of its bytes has no meaning there."""

    def damaged(path: Path, content: bytes, other: bytes, seeded: random.Random) -> None:
        place = path.with_name(f"{path.name}.member")
        with (
            zipfile.ZipFile(io.BytesIO(content)) as old,
            zipfile.ZipFile(io.BytesIO(other)) as spare,
            zipfile.ZipFile(path, "w") as new,
        ):
            for entry in old.infolist():
                inner = old.read(entry)
                if entry.filename == member:
                    damage(place, inner, spare.read(member), seeded)
                    inner = place.read_bytes() if place.exists() else None
                    place.unlink(missing_ok=True)
                if inner is not None:
                    new.writestr(entry, inner)

    return damaged


_BYTES: Mapping[str, Damage] = {
    "a bit near the start": _flip(0.0, 0.05),
    "a bit in the middle": _flip(0.3, 0.7),
    "a bit near the end": _flip(0.95, 1.0),
    "truncated": _truncated,
    "empty": _empty,
    "doubled": _doubled,
}
_PLACES: Mapping[str, Damage] = {
    "a FIFO": _fifo,
    "a folder": _directory,
    "a link to itself": _loop,
    "a link to /dev/zero": _zeros,
}
_SHAPES: Mapping[str, Damage] = {
    "another shape: {}": _text("{}\n"),
    "another shape: [1, 2]": _text("[1, 2]\n"),
    "another shape: null": _text("null\n"),
    "deep nesting": _text("[" * _NESTED + "]" * _NESTED),
    "not UTF-8": _text(b'{"a": "\xff\xfe"}'),
}
_TEXT = {"another digit": _digit, "NaN": _not_numbers, **_SHAPES}
_OTHER: Mapping[str, Damage] = {"another file of its kind": _replaced}
_MEMBER = (
    {name: damage for name, damage in _BYTES.items() if name != "a bit near the start"} | _TEXT | {"absent": _absent}
)

# By form of a file: the damage that it can have.
DAMAGE: Mapping[str, Mapping[str, Damage]] = {
    "tensors": {**_BYTES, **_OTHER, **_PLACES, "NaN": _nan_safetensors},
    "arrays": {**_BYTES, **_OTHER, **_PLACES, "NaN": _nan_npz},
    "pixels": {**_BYTES, **_OTHER, **_PLACES},
    "packed": {**_BYTES, **_OTHER, **_PLACES},
    "json": {**_BYTES, **_OTHER, **_PLACES, **_TEXT},
    # What a person writes or gives may be changed to anything that is valid.
    "written by hand": {
        name: damage
        for name, damage in {**_BYTES, **_PLACES, **_SHAPES}.items()
        if "bit" not in name and name not in ("doubled", "another shape: {}")
    },
    "given json": {**_BYTES, **_PLACES, **_SHAPES},
    "given arrays": {**{name: damage for name, damage in _BYTES.items() if "bit" not in name}, **_PLACES},
    "dataset.json": {name: inside("dataset.json", damage) for name, damage in _MEMBER.items()},
}


def replace(path: Path, damage: Damage, *, other: Path, seed: int) -> None:
    """Put a damaged file in the place of `path`; the file it was linked to stays whole."""
    content, spare = path.read_bytes(), other.read_bytes()
    path.unlink()
    damage(path, content, spare, random.Random(seed))


def mend(path: Path) -> None:
    """Remove whatever a damage left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
