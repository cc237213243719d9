"""Inputs of this machine: shipped by a Python package or provided by hand; copied or linked, verified, recorded."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from onestep.files import canonical_json, read_json, replacing, sha256_of_file, sha256_of_text, write_text

_LINKED_FROM = 64 * 2**20  # bytes


def copy_or_link(source: Path, target: Path, *, linked_from: int = _LINKED_FROM) -> None:
    """Copy `source` to the new path `target`, or link a large file (hard; symbolic across file systems)."""
    if source.stat().st_size < linked_from:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError:
        os.symlink(source.resolve(), target)


def describe_folder(folder: Path) -> dict[str, Any]:
    """Return the path of a folder and the digest of the names and sizes of all its files, without their content.

    The digest is that of the JSON list of [name relative to the folder, bytes], sorted by name.

    Raises:
        ValueError: The folder contains no file.
    """
    files = [Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names]
    sizes = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in files)
    if not sizes:
        raise ValueError(f"{folder}: got an empty folder, expected files in it")
    return {
        "folder": str(folder.resolve()),
        "files": len(sizes),
        "bytes": sum(size for _, size in sizes),
        "listing_sha256": sha256_of_text(canonical_json(sizes)),
    }


def fetch_packaged(package: str, path: str, sha256: str, *, target: Path) -> None:
    """Copy a file of an installed distribution, verify it and record its digest.

    Args:
        package: Distribution, as named by pip, e.g. `scikit-learn`.
        path: File in it, with slashes, e.g. `sklearn/datasets/data/digits.csv.gz`.
        sha256: Expected digest, hexadecimal.
        target: The copy; see `fetch_file`.

    Raises:
        ValueError: The distribution or the file is absent, or the digest differs; nothing is written.
    """
    try:
        files, version = metadata.files(package) or [], metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise ValueError(f"{package}: got no such installed Python package. Fix: `make setup`") from error
    sources = [Path(str(file.locate())) for file in files if file.as_posix() == path]
    if not sources or not sources[0].is_file():
        raise ValueError(f"{package} {version}: got no file {path}. Fix: `package` and `path` in config.yaml")
    fix = "install the version in envs/requirements.lock"
    _place_verified(sources[0], sha256, target=target, place=f"{path} of {package} {version}", fix=fix)


def fetch_file(path: Path, sha256: str | None, *, target: Path, linked_from: int = _LINKED_FROM) -> None:
    """Copy or link a file or describe a folder of this machine, verify it and record its digest.

    Args:
        path: The file or folder. For a folder, `target` is a `.folder` file and gets its description.
        sha256: Expected digest of the file or of the folder's listing, hexadecimal; None accepts any.
        target: Copy or link; `{target}.sha256` gets the digest in the format of `sha256sum`.
        linked_from: Size in bytes from which a file is linked.

    Raises:
        ValueError: It is absent, or its digest differs; nothing is written.
    """
    if not path.exists():
        raise ValueError(f"{path}: got no such file. Fix: put it there, or correct the path in config.yaml")
    if path.is_dir() != (target.suffix == ".folder"):
        kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise ValueError(f"{path}: got {kinds[0]}, expected {kinds[1]}. Fix: end a folder's path in /, and run again")
    if path.is_dir():
        _place_folder(path, sha256, target=target)
    else:
        fix = "replace the file"
        _place_verified(path, sha256, target=target, place=str(path), fix=fix, linked_from=linked_from)


def place(path: Path, sha256: str, *, target: Path) -> None:
    """Copy, link or describe a file or folder of a verified digest, as `fetch_file` does."""
    if path.is_dir():
        _place_folder(path, sha256, target=target)
        return
    with replacing(target) as temporary:
        copy_or_link(path, temporary)
    _record(target, sha256)


def verify_placed(target: Path) -> None:
    """Raise ValueError unless an input still has its recorded digest."""
    record = target.with_name(f"{target.name}.sha256")
    recorded = record.read_text().split()[0] if record.exists() else None
    found = sha256_of_file(target)
    if recorded not in (None, found):
        raise ValueError(f"{target}: got sha256 {found}, expected {recorded} ({record.name}). Fix: delete both")
    if target.suffix == ".folder":
        before = read_json(target)
        now = describe_folder(Path(before["folder"]))
        if now != before:
            form = "{files:,} files, {bytes:,} bytes, listing_sha256 {listing_sha256}"
            got, expected = form.format(**now), form.format(**before)
            raise ValueError(f"{before['folder']}: got {got}, expected {expected}. Fix: delete {target} to accept it")


def verify_file(path: Path, sha256: str | None) -> str:
    """Return the digest of a file or of a folder's listing; raise ValueError if it differs from `sha256`."""
    found = describe_folder(path)["listing_sha256"] if path.is_dir() else sha256_of_file(path)
    if sha256 not in (None, found):
        raise ValueError(f"{path}: got sha256 {found}, expected {sha256} (config.yaml). Fix: replace it")
    return found


def _place_folder(folder: Path, sha256: str | None, *, target: Path) -> None:
    described = describe_folder(folder)
    _check(described["listing_sha256"], sha256, place=str(folder), fix="replace the folder")
    write_text(target, json.dumps(described, indent=2) + "\n")
    _record(target, sha256_of_file(target))


def _place_verified(
    source: Path, sha256: str | None, *, target: Path, place: str, fix: str, linked_from: int = _LINKED_FROM
) -> None:
    with replacing(target) as temporary:
        copy_or_link(source, temporary, linked_from=linked_from)
        found = sha256_of_file(temporary)
        _check(found, sha256, place=place, fix=fix)
    _record(target, found)


def _check(found: str, expected: str | None, *, place: str, fix: str) -> None:
    if expected is not None and found != expected.lower():
        raise ValueError(f"{place}: got sha256 {found}, expected {expected}. Fix: {fix}, or accept it in config.yaml")


def _record(target: Path, sha256: str) -> None:
    write_text(target.with_name(f"{target.name}.sha256"), f"{sha256}  {target.name}\n")
