"""Sources of image files: a folder, a zip, a tar (also compressed, also of tars), read in place, never unpacked.

`entries` lists the images once, in no certain order, those that cannot be used too, with the reason; `read` returns the
bytes of one, or raises ValueError where that fails or exceeds a bound. Sources are pickled to other processes; each
process opens the files itself.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import lzma
import os
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_LARGEST_FILE = 2**26
_SMALL = 2**30  # a tar up to here may have been compressed as well as it likes
_LARGEST_RATIO = 100
_PIECE = 2**20


class Entry(NamedTuple):
    """A file that a source lists as an image."""

    name: str  # its path in the source, with slashes
    place: Any = None  # what the source needs to find it
    refused: str | None = None  # why it is not read; None where it can be tried


def _entry(name: str, place: Any, *, size: int, refused: str | None = None) -> Entry:
    """Return the entry of an image, refused because of its name or its size."""
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ".." in parts:
        refused = "its name leads out of the archive"
    elif size > _LARGEST_FILE:
        refused = refused or f"it has {size:,} bytes, more than the {_LARGEST_FILE:,} that are read"
    clean = "/".join(part for part in parts if part not in ("", "."))
    return Entry(name if refused else clean, None if refused else place, refused)


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _bounded(file: IO[bytes]) -> bytes:
    content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"it has more than the {_LARGEST_FILE:,} bytes that are read")
    return content


class FolderSource:
    """A folder with all below it. Links are followed to files inside of it only."""

    def __init__(self, folder: Path) -> None:
        self._root = folder.resolve()

    def entries(self) -> list[Entry]:
        def fail(error: OSError) -> None:
            raise ValueError(f"{error.filename}: cannot be listed ({error.strerror}); mend the rights") from error

        found: list[Path] = []
        for folder, folders, names in os.walk(self._root, onerror=fail):
            # Links to folders are not walked into, but refused one by one.
            found += [path for name in folders if (path := Path(folder, name)).is_symlink()]
            found += [Path(folder, name) for name in names if _is_picture(name)]
        return [*map(self._entry_of, found)]

    def _entry_of(self, path: Path) -> Entry:
        name = path.relative_to(self._root).as_posix()
        try:
            real = path.resolve(strict=True)
            known = real.stat()
        except (OSError, RuntimeError):
            return Entry(name, refused="it is a link to nothing")
        if not real.is_relative_to(self._root):
            return Entry(name, refused="it is a link out of the folder")
        if stat.S_ISDIR(known.st_mode):
            return Entry(name, refused="it is a link to a folder")
        if not stat.S_ISREG(known.st_mode):
            return Entry(name, refused="it is no regular file")
        return _entry(name, str(real), size=known.st_size)

    def read(self, entry: Entry) -> bytes:
        try:
            with open(entry.place, "rb") as file:
                return _bounded(file)
        except OSError as error:
            raise ValueError(f"cannot be opened ({error.strerror})") from error


class ZipSource:
    """A zip archive."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path}

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self._path)

    def entries(self) -> list[Entry]:
        try:
            members = self._archive.infolist()
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"{self._path}: cannot be read as a zip archive ({error}); download it again") from error
        return [self._entry_of(member) for member in members if not member.is_dir() and _is_picture(member.filename)]

    @staticmethod
    def _entry_of(member: zipfile.ZipInfo) -> Entry:
        linked = stat.S_ISLNK(member.external_attr >> 16)
        refused = "it is a link" if linked else "it is encrypted" if member.flag_bits & 1 else None
        return _entry(member.filename, member, size=member.file_size, refused=refused)

    def read(self, entry: Entry) -> bytes:
        try:
            with self._archive.open(entry.place) as file:
                return _bounded(file)
        except (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
            raise ValueError(f"cannot be unpacked ({error})") from error


class TarSource:
    """A tar archive, plain or compressed as a whole; tars in it count as folders, one level deep.

    A compressed one is unpacked once, as it is, into a temporary file without a name, because its members cannot be
    reached otherwise; the file is gone when this process ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own(_opened(path))

    def _own(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the place of the open file, which may have no name."""
        return {"_path": self._path, "place": f"/proc/{os.getpid()}/fd/{self._descriptor}"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._path = state["_path"]
        self._own(os.open(state["place"], os.O_RDONLY))

    def entries(self) -> list[Entry]:
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                file.seek(0)
                return [*_tar_entries(file)]
        except (OSError, tarfile.TarError, EOFError) as error:
            fix = "download it again"
            raise ValueError(f"{self._path}: cannot be read as a zip or tar archive ({error}); {fix}") from error

    def read(self, entry: Entry) -> bytes:
        offset, size = entry.place
        content = os.pread(self._descriptor, size, offset)
        if len(content) != size:
            raise ValueError("the archive ends within it")
        return content


def _tar_entries(file: IO[bytes], outer: tarfile.TarInfo | None = None) -> Iterator[Entry]:
    """Yield the images of a tar; those of a tar in it, `outer`, as if it were a folder of its name."""
    below, offset = (outer.name.removesuffix(".tar") + "/", outer.offset_data) if outer else ("", 0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            cast(Any, archive).members.clear()  # a million would take a gigabyte
            plain = member.isreg() and member.sparse is None
            if outer is None and plain and member.name.endswith(".tar"):
                try:
                    yield from _tar_entries(cast(IO[bytes], archive.extractfile(member)), member)
                except (OSError, tarfile.TarError, EOFError) as error:
                    yield Entry(member.name, refused=f"it cannot be read as a tar archive ({error})")
            elif _is_picture(member.name) and not member.isdir():
                linked = member.issym() or member.islnk()
                refused = "it is a link" if linked else None if plain else "it is no regular file"
                place = (offset + member.offset_data, member.size)
                yield _entry(below + member.name, place, size=member.size, refused=refused)


_UNPACKERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}


def _opened(path: Path) -> int:
    """Return a descriptor of a file, or of its content, unpacked into a file without a name, if it is compressed."""
    head = _head(path)
    unpacker = next((unpacker for magic, unpacker in _UNPACKERS.items() if head.startswith(magic)), None)
    if unpacker is None:
        return os.open(path, os.O_RDONLY)
    limit = max(_SMALL, _LARGEST_RATIO * path.stat().st_size)
    with tempfile.TemporaryFile(prefix="onestep-") as target:
        try:
            with unpacker(path, "rb") as packed:
                while piece := packed.read(_PIECE):
                    target.write(piece)
                    if target.tell() > limit:
                        raise ValueError(f"{path}: unpacks to more than {_LARGEST_RATIO} times its size, as none does")
            target.flush()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            fix = "Fix: download it again, or name a folder with more space in TMPDIR"
            raise ValueError(f"{path}: cannot be unpacked into {tempfile.gettempdir()} ({error}). {fix}") from error
        return os.dup(target.fileno())


Source = FolderSource | ZipSource | TarSource


def open_source(path: Path) -> Source:
    """Return the source that a path holds: a folder, the `.folder` file that names one, a zip or a tar."""
    if path.is_dir():
        return FolderSource(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file or folder. Fix: correct the path")
    if path.suffix == ".folder":
        return FolderSource(_named_folder(path))
    return ZipSource(path) if _head(path).startswith(b"PK") else TarSource(path)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def _named_folder(path: Path) -> Path:
    """Return the folder that a `.folder` file names."""
    try:
        folder = Path(json.loads(path.read_text(encoding="utf-8"))["folder"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: not {{"folder": PATH, ...}} ({error!r}); fetch the input again') from error
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {folder}. Fix: restore it, or fetch the input again")
    return folder
