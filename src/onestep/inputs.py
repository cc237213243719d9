"""What inputs are called and where they lie, and the registry of what is published: `fetch/registry.yaml` as values.

This stands low, because the config names entries of the registry and the plan names files. An input's *source* is its
block of config.yaml as a mapping: `{package, path, ...}`, `{file}`, `{url, ...}` or `{published}`.
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
"""Folder of the working directory for what was fetched or is brought by hand; it may be a link to a shared one."""

PLACED = Path("results/inputs")
"""Where the stages find inputs: copies of them, or links, each in a folder of the input's name."""

REGISTRY = Path(__file__).parent / "fetch" / "registry.yaml"
"""Every input of the paper, with addresses and what is publicly known of its content."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One entry of the registry.

    Attributes:
        licence: The terms, as its publisher states them.
        filename: What it is called here: a file, or a folder.
        addresses: Where it is, best first; none where it is brought by hand.
        by_hand: Where to get it, where it cannot be fetched.
        folder: Whether it is a folder of files.
        accept: Who must accept the terms before, where a click is asked for.
        size: Bytes.
        sha256: Digest, 64 hexadecimal digits.
        sha256_begins: As many of its first digits as are public.
        md5: Digest, 32 hexadecimal digits.
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


# The file is part of the package and the values are frozen, so that reading it once is only quicker.
@functools.cache
def read_registry() -> Mapping[str, Published]:
    """Return the registry's entries by name, in its order."""
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
    """Return what an input is called in results/inputs/{input}/; a folder becomes a text file `{name}.folder`."""
    if "package" in source:
        return Path(source["path"]).name
    kept = kept_at(source, name="")
    return f"{kept.name}.folder" if _is_folder(source) else kept.name


def placed_at(source: Mapping[str, Any], *, name: str) -> Path:
    """Return where the stages find an input."""
    return PLACED / name / input_filename(source)


def _is_folder(source: Mapping[str, Any]) -> bool:
    """Whether a source is a folder, or will be: what is not there yet is one if its path ends in a slash."""
    if "published" in source:
        return read_registry()[source["published"]].folder
    return "file" in source and (source["file"].endswith("/") or Path(source["file"]).is_dir())


def kept_at(source: Mapping[str, Any], *, name: str) -> Path:
    """Return where a source that no package ships lies on this machine, or will when it has been brought.

    Args:
        source: The source.
        name: The input's name.
    """
    if "file" in source:
        return Path(source["file"])
    if "published" in source:
        return KEPT / read_registry()[source["published"]].filename
    return KEPT / name / address_filename(source["url"])


def absent(source: Mapping[str, Any], *, name: str) -> str | None:
    """Return how to bring an input that is not on this machine, in one line; None where it is."""
    if "package" in source or placed_at(source, name=name).exists():
        return None
    path = kept_at(source, name=name)
    if path.exists():
        return None
    if "file" in source:
        return f"{name}: there is no {path}; bring it there, or correct inputs.{name}.file in config.yaml"
    by_hand = read_registry()[source["published"]].by_hand if "published" in source else None
    return absent_offline(name, path) if by_hand is None else absent_by_hand(name, path, by_hand=by_hand)


def absent_by_hand(name: str, path: Path, *, by_hand: str) -> str:
    """Return how to bring an input that cannot be fetched."""
    elsewhere = f"or name in config.yaml where it is: inputs.{name}: {{file: PATH}}"
    return f"{name}: there is no {path}; {by_hand}; put it there, {elsewhere}"


def absent_offline(name: str, path: Path) -> str:
    """Return how to bring an input that is not on this machine while the network must not be asked."""
    return (
        f"{name}: there is no {path}, and the network is not asked (--offline or ONESTEP_OFFLINE); bring it with "
        f"`onestep fetch --only {name}` where there is one"
    )


def is_offline() -> bool:
    """Whether the environment says that the network must not be asked: ONESTEP_OFFLINE=1."""
    return os.environ.get("ONESTEP_OFFLINE", "") not in ("", "0")
