"""Sources of image files: a folder, a zip, a tar (also compressed, also of tars), read in place, never unpacked.

`entries` lists all files and folders once, in no certain order; `pictures` decides which of them are pictures, of every
source alike; `read` returns the bytes of one, or raises ValueError where that fails or exceeds a bound. Sources are
pickled to other processes; each process opens the files itself.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
import posixpath
import re
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from onestep.files import regular_file
from onestep.folders import is_hidden, named_folder, walk

_logger = logging.getLogger(__name__)

# Format of Pillow by the ending of a name.
FORMATS = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".jif": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
}
EXTENSIONS = frozenset(FORMATS)
# Pictures that are not read: of these a dataset must not lose one in silence.
_NOT_READ = frozenset({
    ".jp2", ".j2k", ".jpx", ".jpf", ".jxl", ".avif", ".avifs", ".heic", ".heif", ".tga", ".dib", ".ico", ".icns",
    ".psd", ".eps", ".svg", ".exr", ".hdr", ".dds", ".pcx", ".sgi", ".rgb", ".xbm", ".xpm", ".pfm", ".pam", ".qoi",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raw",
})  # fmt: skip
_LARGEST_FILE = 2**26
_SMALL = 2**30  # a tar up to here may have been compressed as well as it likes
_LARGEST_RATIO = 100
_PIECE = 2**20


class Entry(NamedTuple):
    """A file of a source, or a folder, whose name ends in a slash."""

    name: str  # its path in the source, with slashes
    place: Any = None  # what the source needs to find it
    refused: str | None = None  # reason for not reading it; None if there is none
    stamp: tuple[int, ...] = ()  # what changes with its content: size and times, or its place in an archive


class Unused(NamedTuple):
    """Files that are no data, all for one reason."""

    reason: str
    files: int
    first: str  # the name of one


class Listing(NamedTuple):
    """What is in a source."""

    pictures: list[Entry]  # in no certain order, those that cannot be used too, with the reason
    empty: frozenset[str]  # folders without a file below, except for hidden ones
    unused: tuple[Unused, ...]  # in the order of the reasons


def pictures(source: Source, root: str = "") -> Listing:
    """Return what is in a source, or in its folder `root`, where paths begin then.

    A picture is recognized by the ending of its name. Hidden files are no data, nor is what is in hidden folders.
    """
    prefix = f"{root.strip('/')}/" if root.strip("/") else ""
    found: list[Entry] = []
    folders, filled = set[str](), set[str]()
    unused: dict[str, Unused] = {}
    for entry in source.entries():
        if not entry.name.startswith(prefix):
            continue
        name = entry.name.removeprefix(prefix)
        ending = posixpath.splitext(name)[1].lower()
        hidden, above = is_hidden(name), posixpath.dirname(name)
        (folders if hidden or name.endswith("/") else filled).add(above)
        if name.endswith("/"):
            continue
        if not hidden and (entry.refused or ending in EXTENSIONS):
            found.append(entry._replace(name=name))
        elif not hidden and ending in _NOT_READ:
            found.append(Entry(name, refused=f"pictures that end in {ending} are not read; convert it to PNG"))
        else:
            reason = "it is hidden" if hidden else f"it ends in {ending}" if ending else "its name has no ending"
            before = unused.get(reason, Unused(reason, 0, name))
            unused[reason] = before._replace(files=before.files + 1, first=min(before.first, name))
    full = {above for name in filled for above in _with_parents(name)}
    empty = {above for name in folders for above in _with_parents(name) if above not in full and not is_hidden(above)}
    return Listing(found, frozenset(empty), tuple(unused[reason] for reason in sorted(unused)))


def _with_parents(name: str) -> Iterator[str]:
    """Yield the name of a folder and of all folders that it is in."""
    while name:
        yield name
        name = posixpath.dirname(name) if name != "/" else ""


def log_unused(unused: tuple[Unused, ...]) -> None:
    """Log how many files are not used, for each reason."""
    for each in unused:
        _logger.warning("not used: %s files, such as %s: %s", f"{each.files:,}", each.first, each.reason)


def _entry(name: str, place: Any, *, size: int, refused: str | None = None, stamp: tuple[int, ...]) -> Entry:
    """Return the entry of a file in an archive, refused because of its name or its size."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or ".." in plain.split("/") or re.match("[A-Za-z]:/", plain):
        refused = "its name leads out of the archive" if _is_picture(name) else None
    elif plain != name:
        how = "its name has backslashes for slashes, as of a faulty zip program; pack it again"
        refused = how if _is_picture(name) else None
    else:
        return _bounded_entry(_clean(name), place, size=size, refused=refused, stamp=stamp)
    return Entry(name, None, refused)


def _bounded_entry(name: str, place: Any, *, size: int, refused: str | None = None, stamp: tuple[int, ...]) -> Entry:
    """Return the entry of a file; of one that is no picture, its name alone counts."""
    if not _is_picture(name):
        return Entry(name)
    if size > _LARGEST_FILE:
        refused = refused or f"it has {size:,} bytes, more than the {_LARGEST_FILE:,} that are read"
    return Entry(name, None if refused else place, refused, stamp)


def _clean(name: str) -> str:
    """Return a path without empty parts and dots; that of a folder still ends in a slash."""
    path = "/".join(part for part in name.split("/") if part not in ("", "."))
    return f"{path}/" if name.endswith("/") and path else path


def _is_picture(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in EXTENSIONS


def _bounded(file: IO[bytes], most: int | None = None) -> bytes:
    most = _LARGEST_FILE if most is None else most
    content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than the {most:,} bytes that are read")
    return content


class FolderSource:
    """A folder with all below it. Links are followed to files inside of it only."""

    def __init__(self, folder: Path) -> None:
        self._root = folder.resolve()

    def entries(self) -> Iterator[Entry]:
        for name, file in walk(self._root):
            if name.endswith("/"):
                yield Entry(name)
            elif file.is_symlink():
                yield from self._linked(name, Path(file.path))
            elif _is_picture(name):
                yield self._entry_of(name, file.path, file.stat(follow_symlinks=False))
            else:
                yield Entry(name)

    def _linked(self, name: str, path: Path) -> Iterator[Entry]:
        """Yield the entry of a link; one to a folder is refused, and still is a folder."""
        try:
            real = path.resolve(strict=True)
            known = real.stat()
        except (OSError, RuntimeError):
            yield Entry(name, refused="it is a link to nothing" if _is_picture(name) else None)
            return
        if stat.S_ISDIR(known.st_mode):
            yield Entry(f"{name}/")
            out = "out of the folder" if not real.is_relative_to(self._root) else "to a folder"
            yield Entry(name, refused=f"it is a link {out}")
        elif not _is_picture(name):
            yield Entry(name)
        elif not real.is_relative_to(self._root):
            yield Entry(name, refused="it is a link out of the folder")
        else:
            yield self._entry_of(name, str(real), known)

    @staticmethod
    def _entry_of(name: str, path: str, known: os.stat_result) -> Entry:
        if not stat.S_ISREG(known.st_mode):
            return Entry(name, refused="it is no regular file")
        stamp = (known.st_size, known.st_mtime_ns, known.st_ctime_ns)
        return _bounded_entry(name, path, size=known.st_size, stamp=stamp)

    def read(self, entry: Entry) -> bytes:
        try:
            with open(entry.place, "rb") as file:
                return _bounded(file)
        except OSError as error:
            raise ValueError(f"cannot be opened ({error.strerror})") from error


class ZipSource:
    """A zip archive. It may be used from forked and from spawned processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when going to another process."""
        return {"_path": self._path, "_opened": None}

    def _archive(self) -> zipfile.ZipFile:
        """Return the open archive; each process opens its own, because a fork shares the file's position."""
        if self._opened is None or self._opened[0] != os.getpid():
            path = regular_file(self._path)
            try:
                self._opened = os.getpid(), zipfile.ZipFile(path)
            except Exception as error:  # a damaged directory may raise anything
                found = f"{path}: cannot be read as a zip archive ({error})"
                raise ValueError(f"{found}. Fix: download it, or make it, again") from error
        return self._opened[1]

    def entries(self) -> Iterator[Entry]:
        archive, known = self._archive(), self._path.stat()
        for member in archive.infolist():
            linked = stat.S_ISLNK(member.external_attr >> 16)
            refused = "it is a link" if linked else "it is encrypted" if member.flag_bits & 1 else None
            stamp = (known.st_size, known.st_mtime_ns, member.header_offset, member.file_size, member.CRC)
            yield _entry(member.filename, member, size=member.file_size, refused=refused, stamp=stamp)

    def names(self) -> list[str]:
        """Return the names of all members, as they are in the archive."""
        return self._archive().namelist()

    def read(self, entry: Entry, *, most: int | None = None) -> bytes:
        """Return the content of the member that `place` is, or names; of at most `most` bytes."""
        try:
            with self._archive().open(entry.place) as file:
                return _bounded(file, most)
        except ValueError:
            raise
        except Exception as error:  # so may a damaged member
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
        known = self._path.stat()
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                file.seek(0)
                return [*_tar_entries(file, stamp=(known.st_size, known.st_mtime_ns))]
        except (OSError, tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            fix = "download it again"
            raise ValueError(f"{self._path}: cannot be read as a zip or tar archive ({error}); {fix}") from error

    def read(self, entry: Entry) -> bytes:
        offset, size = entry.place
        content = os.pread(self._descriptor, size, offset)
        if len(content) != size:
            raise ValueError("the archive ends within it")
        return content


def _tar_entries(file: IO[bytes], outer: tarfile.TarInfo | None = None, *, stamp: tuple[int, ...]) -> Iterator[Entry]:
    """Yield what is in a tar; what is in a tar in it, `outer`, as if that were a folder of its name."""
    below, offset = (outer.name.removesuffix(".tar") + "/", outer.offset_data) if outer else ("", 0)
    # As by default where the locale is UTF-8; a byte that is none is written as in a folder.
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace") as archive:
        while (member := archive.next()) is not None:
            cast(Any, archive).members.clear()  # a million would take a gigabyte
            plain = member.isreg() and member.sparse is None
            if outer is None and plain and member.name.endswith(".tar") and not is_hidden(member.name):
                yield _entry(member.name.removesuffix(".tar") + "/", None, size=0, stamp=())
                try:
                    yield from _tar_entries(cast(IO[bytes], archive.extractfile(member)), member, stamp=stamp)
                except (OSError, tarfile.TarError, EOFError, ValueError, OverflowError) as error:
                    yield Entry(member.name, refused=f"it cannot be read as a tar archive ({error})")
                continue
            name = below + member.name + ("/" if member.isdir() else "")
            linked = member.issym() or member.islnk()
            refused = "it is a link" if linked else None if plain else "it is no regular file"
            place = (offset + member.offset_data, member.size)
            yield _entry(name, place, size=member.size, refused=refused, stamp=(*stamp, *place))


_UNPACKERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}


def _unpacker(path: Path) -> Callable[..., Any] | None:
    head = _head(path)
    return next((unpacker for magic, unpacker in _UNPACKERS.items() if head.startswith(magic)), None)


def unpacked(path: Path) -> IO[bytes]:
    """Open a file to read its content, unpacked if it is compressed; its checksum is compared at the end."""
    return cast(IO[bytes], (_unpacker(path) or open)(path, "rb"))


def _opened(path: Path) -> int:
    """Return a descriptor of a file, or of its content, unpacked into a file without a name, if it is compressed."""
    if _unpacker(path) is None:
        return os.open(path, os.O_RDONLY)
    limit = max(_SMALL, _LARGEST_RATIO * path.stat().st_size)
    with tempfile.TemporaryFile(prefix="onestep-") as target:
        try:
            with unpacked(path) as packed:
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
    if not path.exists() and not path.is_symlink():
        raise ValueError(f"{path}: there is no such file or folder. Fix: correct the path")
    regular_file(path)
    if path.suffix == ".folder":
        return FolderSource(named_folder(path))
    return ZipSource(path) if _head(path).startswith(b"PK") else TarSource(path)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)
