"""Archives as `onestep prepare` and EDM's tool write them, listed and read without an object for each member.

They hold stored PNG files under plain names of equal lengths, and `dataset.json`. A million are listed in a second.
Whatever differs, also by damage, is not for this file: its functions return None, and the caller uses the general way,
which also words the errors.
"""

from __future__ import annotations

import os
import stat
import struct
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onestep.files import regular_file

LABELS = "dataset.json"

_END, _END_64, _LOCATOR_64, _HEADER, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_END_FIELDS, _LOCAL_BYTES = struct.Struct("<4s4H2LH"), 30
_END_64_FIELDS, _LOCATOR_FIELDS = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
# A central header without its signature, and without the name and the extra field after it.
_FIELDS = np.dtype([
    ("signature", "S4"), ("versions", "<u4"), ("flags", "<u2"), ("method", "<u2"), ("time", "<u4"), ("crc", "<u4"),
    ("packed", "<u4"), ("size", "<u4"), ("name", "<u2"), ("extra", "<u2"), ("comment", "<u2"), ("disk", "<u2"),
    ("internal", "<u2"), ("external", "<u4"), ("offset", "<u4"),
])  # fmt: skip
_MANY = 2**16  # members at a time
_SHORT_RUNS = 1_000  # of one length of name: more of them than members / 8, and the general way is quicker
_LARGEST = 2**26  # bytes of a member
_IN_64 = 0xFFFFFFFF
_OFFSET_64 = (b"\1\0\10\0", 12)  # the extra field of an offset beyond 4 GiB: its head and its length

_OTHER, _WORD, _SIGN, _SLASH = range(4)
_KINDS = np.zeros(256, np.uint8)
_KINDS[np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", np.uint8)] = _WORD
_KINDS[np.frombuffer(b"._-", np.uint8)] = _SIGN
_KINDS[ord("/")] = _SLASH

_PNG, _LARGEST_SIDE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 4096
_PNG_MODES = {b"\x08\0\0\0\0": "L", b"\x08\2\0\0\0": "RGB"}  # 8 bits, grey or RGB, not interlaced


class PlainMembers:
    """The files of a plain archive in the order of their names, and its labels; used in one process or several."""

    def __init__(self, path: Path, *, names: np.ndarray, table: np.ndarray, labels: int | None) -> None:
        """Keep names, bytes [N], and for each a row of `table`: offset, size, CRC. `labels` is the last row if any."""
        self._path, self.names, self._table, self._labels = path, names, table, labels
        self._opened: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when going to another process."""
        return {**self.__dict__, "_opened": None}

    def read(self, index: int) -> bytes | None:
        """Return the content of image `index`, which has its recorded checksum, or None."""
        return self._content(self._table[index], name=bytes(self.names[index]))

    def pixels(self, index: int) -> np.ndarray | None:
        """Return image `index`, uint8 [C, H, W], or None."""
        content = self.read(index)
        found = None if content is None else plain_png(content)
        if found is None:
            return None
        return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)

    def labels(self, *, most: int) -> bytes | None:
        """Return the content of `dataset.json`, of at most `most` bytes; None also if it is absent."""
        if self._labels is None or self._table[self._labels, 1] > most:
            return None
        return self._content(self._table[self._labels], name=LABELS.encode())

    @property
    def has_labels(self) -> bool:
        """Whether there is a `dataset.json`."""
        return self._labels is not None

    def _content(self, row: np.ndarray, *, name: bytes) -> bytes | None:
        offset, size, crc = row.tolist()
        start = _LOCAL_BYTES + len(name)
        piece = os.pread(self._descriptor(), start + size, offset)
        if piece[:4] != _LOCAL or piece[_LOCAL_BYTES:start] != name:
            return None
        length, extra = struct.unpack_from("<2H", piece, 26)
        if length != len(name):
            return None
        content = piece[start:]
        if extra:
            content = os.pread(self._descriptor(), size, offset + start + extra)
        return content if len(content) == size and zlib.crc32(content) == crc else None

    def _descriptor(self) -> int:
        """Return the open file of this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            self._opened = os.getpid(), descriptor
        return self._opened[1]


def plain_members(path: Path, *, ending: str = ".png") -> PlainMembers | None:
    """List a plain archive of files of an ending of four letters; None if it is not one."""
    try:
        content = _directory(path)
        rows, parts = [], []
        for fields, letters, offsets in _runs(content, ending.encode()) if content is not None else ():
            rows.append(np.stack([offsets, fields["size"].astype(np.int64), fields["crc"].astype(np.int64)], axis=1))
            parts.append(np.ascontiguousarray(letters).view(f"S{letters.shape[1]}")[:, 0])
    except (OSError, ValueError, struct.error, OverflowError):
        return None
    if not parts:
        return None
    names, table = np.concatenate(parts), np.concatenate(rows)
    are_labels = names == LABELS.encode()
    others, images = np.flatnonzero(are_labels), np.flatnonzero(~are_labels)
    order = images[np.argsort(names[images], kind="stable")]
    found = names[order]
    if not len(order) or len(others) > 1 or (found[1:] == found[:-1]).any():
        return None
    labels = len(order) if len(others) else None
    return PlainMembers(path, names=found, table=table[np.concatenate([order, others])], labels=labels)


def _directory(path: Path) -> bytes | None:
    """Return the central directory of an archive that ends in it, with nothing before its first member."""
    with open(regular_file(path), "rb") as file:
        end = os.fstat(file.fileno()).st_size - _END_FIELDS.size
        if end < 0:
            return None
        signature, *_, count, size, start, comment = _END_FIELDS.unpack(os.pread(file.fileno(), _END_FIELDS.size, end))
        if signature != _END or comment:
            return None
        is_64 = count == 0xFFFF or _IN_64 in (size, start)
        # zipfile writes these fields from 2 GiB on, and then the true numbers in the others, too.
        if is_64 or (start + size != end and end >= _LOCATOR_FIELDS.size):
            found = os.pread(file.fileno(), _LOCATOR_FIELDS.size, end - _LOCATOR_FIELDS.size)
            signature, _, place, _ = _LOCATOR_FIELDS.unpack(found)
            if signature != _LOCATOR_64:
                return None
            found = os.pread(file.fileno(), _END_64_FIELDS.size, place)
            signature, *_, count, size, start = _END_64_FIELDS.unpack(found)
            if signature != _END_64:
                return None
            end = place
        if start + size != end or size < count * (_FIELDS.itemsize + 1):
            return None
        content = os.pread(file.fileno(), size, start)
        while 0 < len(content) < size:  # the kernel reads 2 GiB at most
            content += os.pread(file.fileno(), size - len(content), start + len(content))
    return content if len(content) == size else None


def _runs(content: bytes, ending: bytes) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield fields, letters of the names [N, L] and offsets of neighbouring members with equal lengths.

    ValueError: One is not plain.
    """
    place, runs, members = 0, 0, 0
    while place < len(content):
        first = np.frombuffer(content, _FIELDS, count=1, offset=place)[0]
        length, extra = int(first["name"]), int(first["extra"])
        stride = _FIELDS.itemsize + length + extra
        count = min(_MANY, (len(content) - place) // stride)
        if not count or not length:
            raise ValueError("the directory ends within a member")
        table = np.frombuffer(content, np.uint8, count=count * stride, offset=place).reshape(count, stride)
        fields = np.ascontiguousarray(table[:, : _FIELDS.itemsize]).view(_FIELDS)[:, 0]
        alike = (fields["signature"] == _HEADER) & (fields["name"] == length) & (fields["extra"] == extra)
        count = count if alike.all() else int(alike.argmin())
        table, fields = table[:count], fields[:count]
        letters = table[:, _FIELDS.itemsize : _FIELDS.itemsize + length]
        _check(fields, letters, ending)
        yield fields, letters, _offsets(fields, table[:, _FIELDS.itemsize + length :])
        place, runs, members = place + count * stride, runs + 1, members + count
        if runs > _SHORT_RUNS and runs * 8 > members:
            raise ValueError("the names have many lengths")


def _check(fields: np.ndarray, letters: np.ndarray, ending: bytes) -> None:
    """Raise ValueError unless all are stored files with plain names: of the ending, or the labels."""
    if not len(fields):
        raise ValueError("no member is at this place")
    links = stat.S_IFMT(0o177777) & (fields["external"] >> 16) == stat.S_IFLNK
    plain = np.isin(fields["flags"], (0, 0x800)) & (fields["method"] == 0) & (fields["packed"] == fields["size"])
    plain &= (fields["size"] <= _LARGEST) & (fields["disk"] == 0) & (fields["comment"] == 0) & ~links
    if letters.tobytes() != LABELS.encode():
        kinds = _KINDS[letters]
        begins = kinds[:, :1] == _WORD
        after = (kinds[:, :-1] != _SLASH) | (kinds[:, 1:] == _WORD)
        plain &= begins[:, 0] & after.all(axis=1) & (kinds != _OTHER).all(axis=1)
        plain &= (letters[:, -4:] == np.frombuffer(ending, np.uint8)[: letters.shape[1]]).all(axis=1)
    if not plain.all():
        raise ValueError("a member is not plain")


def _offsets(fields: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Return the places of members, int64; those beyond 4 GiB are in the extra field."""
    offsets = fields["offset"].astype(np.int64)
    far = fields["offset"] == _IN_64
    if far.any():
        head, length = _OFFSET_64
        found = np.ascontiguousarray(extra[far])
        if extra.shape[1] != length or (found[:, : len(head)] != np.frombuffer(head, np.uint8)).any():
            raise ValueError("an offset is not where it should be")
        offsets[far] = np.ascontiguousarray(found[:, len(head) :]).view("<i8")[:, 0]
    return offsets


def plain_png(content: bytes) -> np.ndarray | None:
    """Return the pixels, uint8 [H, W] or [H, W, 3], of a PNG of header, pixels and end alone; None of any other file.

    Pillow's decoder without its reader of files, which takes as long again.
    """
    if content[:16] != _PNG or (mode := _PNG_MODES.get(content[24:29])) is None:
        return None
    width, height = struct.unpack_from(">2L", content, 16)
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        return None
    if zlib.crc32(content[12:29]) != int.from_bytes(content[29:33], "big"):
        return None
    place, parts = 33, []
    while content[place + 4 : place + 8] == b"IDAT":
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return None
        parts.append(content[place + 8 : end])
        place = end + 4
    if content[place:] != b"\0\0\0\0IEND\xaeB`\x82":
        return None
    try:
        return np.array(Image.frombytes(mode, (width, height), b"".join(parts), "zip", mode))
    except (ValueError, OSError, SystemError):
        return None
