"""Folders from outside: the names, sizes and times of what is in them, without reading a file.

Names are paths below the folder with slashes, in UTF-8 whatever the locale; a byte that is not UTF-8 is written \\xNN.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestep.files import canonical_json, read_json, sha256_of_text

_SYSTEM = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"})
_TIMED = 100_000  # files, about a second of work; more would delay every plan


def named_folder(path: Path) -> Path:
    """Return the folder that a `.folder` file of an input names, or the folder itself. ValueError: There is none."""
    if path.is_dir():
        return path
    try:
        folder = Path(read_json(path)["folder"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'{path}: not {{"folder": PATH, ...}} ({error!r}); fetch the input again') from error
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {folder}. Fix: restore it, or fetch the input again")
    return folder


def is_hidden(name: str) -> bool:
    """Whether a path is no data: a part of it begins with a dot, or is of an operating system, such as `__MACOSX`."""
    return any((part[:1] == "." and part not in (".", "..")) or part in _SYSTEM for part in name.split("/"))


def text_of(name: str) -> str:
    """Return the name of a file as text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def walk(folder: Path, *, hidden: bool = True) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the name and entry of all that is below a folder, in a certain order; links are not followed.

    The name of a folder ends in a slash. Without `hidden`, what is no data is left out. ValueError: A folder cannot be
    listed.
    """
    waiting = [("", os.fspath(folder))]
    while waiting:
        above, path = waiting.pop()
        try:
            with os.scandir(path) as listed:
                entries = sorted(listed, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            found = f"{path}: cannot be listed ({error.strerror}), expected a readable folder"
            raise ValueError(f"{found}. Fix: correct its rights") from error
        for entry in entries:
            name = above + text_of(entry.name)
            if hidden or not is_hidden(text_of(entry.name)):
                if entry.is_dir(follow_symlinks=False):
                    name += "/"
                    waiting.append((name, entry.path))
                yield name, entry


def folder_state(folder: Path) -> str:
    """Return the digest of the names, sizes and times of the data in a folder; of 100,000 files, of the rest the names.

    Raises as `walk`.
    """
    digest, timed = hashlib.sha256(), 0
    for name, entry in walk(folder, hidden=False):
        facts = name
        if timed < _TIMED and not name.endswith("/"):
            known = entry.stat(follow_symlinks=False)
            facts, timed = f"{name}\0{known.st_size}\0{known.st_mtime_ns}", timed + 1
        digest.update(f"{facts}\0\0".encode())
    return digest.hexdigest()


def describe_folder(folder: Path) -> dict[str, Any]:
    """Return a folder's path, counts, digest of its listing, and state.

    The digest is that of the JSON of [name, bytes] of all files, also through links, sorted by name. ValueError: There
    are no files, or a folder cannot be listed.
    """
    sizes = sorted((text_of(str(path.relative_to(folder))), path.stat().st_size) for path in files_below(folder))
    if not sizes:
        raise ValueError(f"{folder}: got an empty folder, expected files in it")
    return {
        "folder": str(folder.resolve()),
        "files": len(sizes),
        "bytes": sum(size for _, size in sizes),
        "listing_sha256": sha256_of_text(canonical_json(sizes)),
        "state": folder_state(folder),
    }


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, also through links, but not through those that lead back up."""

    def fail(error: OSError) -> None:
        found = f"{error.filename}: cannot be listed ({error.strerror}), expected a readable folder"
        raise ValueError(f"{found}. Fix: correct its rights") from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if not _leads_up(Path(parent, name))]
        yield from (Path(parent, name) for name in names)


def _leads_up(path: Path) -> bool:
    """Whether a folder is a link to one that it is in, so that a walk through it would not end."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())
