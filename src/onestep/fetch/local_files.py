"""Inputs of this machine: shipped by a Python package or provided by hand; copied or linked, verified, recorded."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from onestep.files import read_json, regular_file, replacing, sha256_of_file, write_text
from onestep.folders import describe_folder, text_of
from onestep.inputs import recorded_digest

_LINKED_FROM = 64 * 2**20  # bytes
_LISTING = {"files": int, "bytes": int, "listing_sha256": str}  # of a folder, as it is verified


def copy_or_link(source: Path, target: Path, *, linked_from: int = _LINKED_FROM) -> None:
    """Copy `source` to the new path `target`, or link a large file (hard; symbolic across file systems)."""
    if source.stat().st_size < linked_from:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError:
        os.symlink(source.resolve(), target)


def fetch_packaged(package: str, path: str, sha256: str, *, target: Path) -> None:
    """Place a file of an installed distribution, as named by pip; ValueError if it is absent or another one."""
    try:
        files, version = metadata.files(package) or [], metadata.version(package)
    except metadata.PackageNotFoundError as error:
        fix = f"Fix: `make setup`, or `pip install {package}`"
        raise ValueError(f"{package}: got no such installed Python package. {fix}") from error
    sources = [Path(str(file.locate())) for file in files if file.as_posix() == path]
    if not sources or not sources[0].is_file():
        raise ValueError(f"{package} {version}: got no file {path}. Fix: `package` and `path` in config.yaml")
    fix = "install the version in envs/requirements.lock"
    place(sources[0], sha256, target=target, named=f"{path} of {package} {version}", fix=fix)


def fetch_file(path: Path, sha256: str | None, *, target: Path, linked_from: int = _LINKED_FROM) -> None:
    """Place a file, or a folder if `target` ends in .folder; ValueError if it is absent or another one."""
    if not path.exists():
        raise ValueError(f"{path}: got no such file. Fix: put it there, or correct the path in config.yaml")
    if path.is_dir() != (target.suffix == ".folder"):
        kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise ValueError(f"{path}: got {kinds[0]}, expected {kinds[1]}. Fix: end a folder's path in /, and run again")
    place(path, sha256, target=target, linked_from=linked_from)


def place(
    source: Path,
    sha256: str | None,
    *,
    target: Path,
    named: str | None = None,
    fix: str = "replace it",
    verified: bool = False,
    linked_from: int = _LINKED_FROM,
) -> None:
    """Copy or link a file, or describe a folder, in `target`; `{target}.sha256` gets its digest as by `sha256sum`.

    ValueError on another digest than `sha256` (of the file or of the folder's listing, hexadecimal; None accepts any),
    and nothing is written. `named` and `fix` are for its message. With `verified` a file is not read again.
    """
    with replacing(target) as temporary:
        if source.is_dir():
            described = describe_folder(source)
            temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            found, recorded = described["listing_sha256"], sha256_of_file(temporary)
        else:
            copy_or_link(regular_file(source), temporary, linked_from=linked_from)
            found = recorded = sha256 if sha256 and verified else sha256_of_file(temporary)
        if sha256 is not None and found != sha256.lower():
            problem = f"{named or source}: got sha256 {found}, expected {sha256}"
            raise ValueError(f"{problem}. Fix: {fix}, or accept it in config.yaml")
    write_text(target.with_name(f"{target.name}.sha256"), f"{recorded}  {text_of(target.name)}\n")


def verify_placed(target: Path) -> None:
    """Raise ValueError unless an input still has its recorded digest."""
    recorded, found = recorded_digest(target), sha256_of_file(regular_file(target))
    if recorded is not None and recorded[1] != found:
        record, expected = recorded
        raise ValueError(f"{target}: got sha256 {found}, expected {expected} ({record.name}). Fix: delete both")
    if target.suffix == ".folder":
        before = _described(target)
        now = describe_folder(Path(before["folder"]))
        if any(now[key] != before[key] for key in _LISTING):
            form = "{files:,} files, {bytes:,} bytes, listing_sha256 {listing_sha256}"
            got, expected = form.format(**now), form.format(**before)
            raise ValueError(f"{before['folder']}: got {got}, expected {expected}. Fix: delete {target} to accept it")


def _described(target: Path) -> dict[str, Any]:
    """Return the description of a folder in a file; ValueError where it is none."""
    found = read_json(regular_file(target))
    for key, kind in {"folder": str, **_LISTING}.items():
        if not isinstance(found, dict) or type(found.get(key)) is not kind:
            raise ValueError(f"{target}: got no {key!r}, expected the description of a folder. Fix: delete {target}")
    return found


def verify_file(path: Path, sha256: str | None) -> str:
    """Return the digest of a file or of a folder's listing; raise ValueError if it differs from `sha256`."""
    found = describe_folder(path)["listing_sha256"] if path.is_dir() else sha256_of_file(regular_file(path))
    if sha256 not in (None, found):
        raise ValueError(f"{path}: got sha256 {found}, expected {sha256} (config.yaml). Fix: replace it")
    return found
