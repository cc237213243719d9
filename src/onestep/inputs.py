"""Paths of inputs, and the registry of published ones (`fetch/registry.yaml`) as values.

An input's *source* is its block of config.yaml as a mapping: `{package, path, ...}`, `{file}`, `{url, ...}` or
`{published}`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

KEPT = Path("inputs")
"""Folder of downloaded and manually added files, in the working directory; may be a link to a shared folder."""

PLACED = Path("results/inputs")
"""Folder from which stages read inputs: copies or links, each in a folder of the input's name."""

REGISTRY = Path(__file__).parent / "fetch" / "registry.yaml"
"""Inputs of the paper, with addresses and published digests."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One entry of the registry.

    Attributes:
        licence: The publisher's terms.
        filename: Name of the local file or folder.
        addresses: Addresses, best first; none for a manual download.
        by_hand: Source of a manual download.
        folder: Whether it is a folder of files.
        accept: Where terms have to be accepted before the download.
        size: Size in bytes.
        sha256: SHA-256, 64 hexadecimal digits.
        sha256_begins: Published first digits of the SHA-256.
        md5: MD5, 32 hexadecimal digits.
    """

    licence: str
    filename: str
    addresses: tuple[str, ...] = ()
    by_hand: str | None = None
    folder: bool = False
    accept: str | None = None
    size: int | None = None
    sha256: str | None = None
    sha256_begins: str | None = None
    md5: str | None = None


# Cached, because the file is part of the package and the values are frozen.
@functools.cache
def read_registry() -> Mapping[str, Published]:
    """Return the entries of the registry by name, in its order."""
    document = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    return MappingProxyType({name: _published(entry) for name, entry in document.items()})


def _published(entry: Mapping[str, Any]) -> Published:
    addresses = tuple(entry.get("addresses", ()))
    filename = entry.get("filename") or address_filename(addresses[0])
    return Published(**{**entry, "addresses": addresses, "filename": filename})


def address_filename(address: str) -> str:
    """Return the last part of an address: `x.zip` of `https://host/a/x.zip?download=1`."""
    return unquote(urlsplit(address).path).rpartition("/")[2]


def input_filename(source: Mapping[str, Any]) -> str:
    """Return the name of an input's file in results/inputs/{input}/: of a folder, a text file `{name}.folder`."""
    if "package" in source:
        return Path(source["path"]).name
    kept = kept_at(source, name="")
    return f"{kept.name}.folder" if _is_folder(source) else kept.name


def placed_at(source: Mapping[str, Any], *, name: str) -> Path:
    """Return the file of an input that stages read."""
    return PLACED / name / input_filename(source)


def _is_folder(source: Mapping[str, Any]) -> bool:
    """Return whether a source is a folder; a path that does not exist yet is one if it ends in a slash."""
    if "published" in source:
        return read_registry()[source["published"]].folder
    return "file" in source and (source["file"].endswith("/") or Path(source["file"]).is_dir())


def kept_at(source: Mapping[str, Any], *, name: str) -> Path:
    """Return the path of an input on this machine, existing or not, before it is copied or linked for the stages.

    Args:
        source: The source; no file of a package.
        name: The input's name.
    """
    if "file" in source:
        return Path(source["file"])
    if "published" in source:
        return KEPT / read_registry()[source["published"]].filename
    return KEPT / name / address_filename(source["url"])


def absent(source: Mapping[str, Any], *, name: str) -> str | None:
    """Return a message, with the fix, for an input that is not on this machine; None for one that is."""
    if "package" in source or placed_at(source, name=name).exists():
        return None
    path = kept_at(source, name=name)
    if path.exists():
        return None
    if "file" in source:
        return f"{name}: there is no {path}. Fix: put it there, or correct inputs.{name}.file in config.yaml"
    by_hand = read_registry()[source["published"]].by_hand if "published" in source else None
    return absent_offline(name, path) if by_hand is None else absent_by_hand(name, path, by_hand=by_hand)


def absent_by_hand(name: str, path: Path, *, by_hand: str) -> str:
    """Return the message for an absent input with a manual download."""
    elsewhere = f"or set its path in config.yaml: inputs.{name}: {{file: PATH}}"
    return f"{name}: there is no {path}. Fix: {by_hand}; put it there, {elsewhere}"


def absent_offline(name: str, path: Path) -> str:
    """Return the message for an absent input without network access."""
    return (
        f"{name}: there is no {path}, and downloads are off (--offline or ONESTEP_OFFLINE). "
        f"Fix: run `onestep fetch --only {name}` on a machine with network access"
    )


def is_offline() -> bool:
    """Return whether the environment forbids downloads: ONESTEP_OFFLINE=1."""
    return os.environ.get("ONESTEP_OFFLINE", "") not in ("", "0")
