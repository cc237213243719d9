"""Names and paths of inputs, and the registry of published files (`fetch/registry.yaml`).

Below config and plan, which refer to both. The *source* of an input is its block in config.yaml as a mapping:
`{package, path, ...}`, `{file}`, `{url, ...}` or `{published}`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from onestep.files import read_text

KEPT = Path("inputs")
"""Folder in the working directory for downloads and files provided by hand; may be a link to a shared folder."""

PLACED = Path("results/inputs")
"""Folder from which the stages read inputs: copies or links, each in a folder with the input's name."""

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_LONGEST_RECORD = 2**16  # bytes: a digest and a name

REGISTRY = Path(__file__).parent / "fetch" / "registry.yaml"
"""Inputs of the paper with their addresses and publicly stated digests."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One entry of the registry; digests are in hexadecimal digits."""

    licence: str  # as stated by the publisher
    filename: str  # of the file or folder in inputs/
    addresses: tuple[str, ...] = ()  # the preferred one first, or those of a folder's files; none if provided by hand
    by_hand: str | None = None  # where to get it if it cannot be downloaded
    folder: bool = False
    accept: str | None = None  # who must accept the terms first, if a click is required
    size: int | None = None  # bytes
    sha256: str | None = None
    sha256_begins: str | None = None  # first digits, if only these are public
    md5: str | None = None
    network: Mapping[str, int] | None = None  # resolution, channels, and classes (0 without) of a denoiser
    law: str | None = None  # of the denoiser, where neither its file nor its kind of file shows it
    gflop: float | None = None  # of one evaluation of the denoiser for one image
    half: bool = False  # whether its images pass in half precision


# A constant of the package with frozen values; the cache only saves time.
@functools.cache
def read_registry() -> Mapping[str, Published]:
    """Return the entries of the registry by name, in its order."""
    document = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    entries = {}
    for name, entry in document.items():
        addresses = tuple(entry.get("addresses", ()))
        filename = entry.get("filename") or address_filename(addresses[0])
        entries[name] = Published(**{**entry, "addresses": addresses, "filename": filename})
    return MappingProxyType(entries)


def address_filename(address: str) -> str:
    """Return the last part of an address: `x.zip` of `https://host/a/x.zip?download=1`."""
    return unquote(urlsplit(address).path).rpartition("/")[2]


def input_filename(source: Mapping[str, Any]) -> str:
    """Return the filename of an input in results/inputs/{input}/; for a folder, a text file `{name}.folder`."""
    if "package" in source:
        return Path(source["path"]).name
    kept = kept_at(source, name="")
    if "published" in source:
        folder = read_registry()[source["published"]].folder
    else:  # a path that does not exist yet is a folder if it ends in a slash
        folder = "file" in source and (source["file"].endswith("/") or kept.is_dir())
    return f"{kept.name}.folder" if folder else kept.name


def placed_at(source: Mapping[str, Any], *, name: str) -> Path:
    """Return the path from which the stages read an input."""
    return PLACED / name / input_filename(source)


def kept_at(source: Mapping[str, Any], *, name: str) -> Path:
    """Return the path of a source other than `{package, ...}` on this machine, whether it exists yet or not."""
    if "file" in source:
        return Path(source["file"])
    if "published" in source:
        return KEPT / read_registry()[source["published"]].filename
    return KEPT / name / address_filename(source["url"])


def recorded_digest(path: Path) -> tuple[Path, str] | None:
    """Return the record beside an input, `{name}.sha256` as of `sha256sum`, and the digest in it; None without one.

    ValueError: The record has no SHA-256.
    """
    record = path.with_name(f"{path.name}.sha256")
    if not record.exists():
        return None
    words = read_text(record, most=_LONGEST_RECORD).split()
    if not words or not _SHA256.fullmatch(words[0]):
        found = f"{record}: got {(words or ['nothing'])[0][:40]}, expected a SHA-256"
        raise ValueError(f"{found}. Fix: delete it and {path.name}, and fetch again")
    return record, words[0].lower()


def absent(source: Mapping[str, Any], *, name: str) -> str | None:
    """Return None for an input on this machine, else one line on how to provide it."""
    if "package" in source or placed_at(source, name=name).exists():
        return None
    if (path := kept_at(source, name=name)).exists():
        return None
    if "file" in source:
        return f"{name}: got no {path}. Fix: put it there, or correct inputs.{name}.file in config.yaml"
    by_hand = read_registry()[source["published"]].by_hand if "published" in source else None
    return absent_offline(name, path) if by_hand is None else absent_by_hand(name, path, by_hand=by_hand)


def absent_by_hand(name: str, path: Path, *, by_hand: str) -> str:
    """Return one line on how to provide an input that cannot be downloaded."""
    elsewhere = f"or set inputs.{name}: {{file: PATH}} in config.yaml"
    return f"{name}: got no {path}, which cannot be downloaded. Fix: {by_hand}; put it there, {elsewhere}"


def absent_offline(name: str, path: Path) -> str:
    """Return one line on how to provide an input without a network."""
    fix = f"Fix: run `onestep fetch --only {name}` on a machine with a network"
    return f"{name}: got no {path}, and no download under --offline or ONESTEP_OFFLINE. {fix}"


def is_offline() -> bool:
    """Return whether ONESTEP_OFFLINE forbids downloads."""
    return os.environ.get("ONESTEP_OFFLINE", "") not in ("", "0")
