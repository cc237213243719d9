"""The folder inputs/ of the working directory: what was fetched, and what is brought by hand, each verified.

results/inputs/ holds links to it, so that a rule that runs again, or results that are thrown away, cost no download.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onestep.fetch.digests import Expected, Mismatch, Verified
from onestep.fetch.download import Patience, Unobtainable, download
from onestep.fetch.lockfile import InputsLock
from onestep.fetch.partial import Part
from onestep.fetch.placing import describe_folder
from onestep.fetch.progress import Progress
from onestep.fetch.turns import own_turn
from onestep.inputs import KEPT, absent_by_hand, absent_offline, kept_at, read_registry

_WORK = KEPT / ".fetch"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file, or folder, that the store is asked for.

    Attributes:
        name: The input's name in config.yaml.
        key: What inputs.lock.yaml calls it: its name in the registry, or its address.
        path: Where it is kept.
        addresses: Where it is to be had; none where it is brought by hand.
        by_hand: Where a person gets it.
        folder: Whether it is a folder.
        expected: What is publicly known of it.
        terms: Licence, and who must accept it.
    """

    name: str
    key: str
    path: Path
    addresses: tuple[str, ...] = ()
    by_hand: str | None = None
    folder: bool = False
    expected: Expected
    terms: str | None = None


def wanted(source: Mapping[str, Any], *, name: str) -> Wanted:
    """Return what a source `{url, ...}` or `{published}` stands for.

    Args:
        source: The source.
        name: The input's name.

    Raises:
        ValueError: The registry has no such entry.
    """
    if "url" in source:
        known = Expected(said_by="config.yaml", size=source.get("size"), sha256=source.get("sha256"))
        address, terms = source["url"], source.get("licence")
        path = kept_at(source, name=name)
        return Wanted(name=name, key=address, path=path, addresses=(address,), expected=known, terms=terms)
    key, registry = source["published"], read_registry()
    if key not in registry:
        raise ValueError(f"{name}: found {key!r}, expected a name of fetch/registry.yaml: {', '.join(registry)}")
    entry = registry[key]
    known = Expected(
        said_by="fetch/registry.yaml",
        size=entry.size,
        sha256=entry.sha256,
        sha256_begins=entry.sha256_begins,
        md5=entry.md5,
    )
    return Wanted(
        name=name,
        key=key,
        path=kept_at(source, name=name),
        addresses=entry.addresses,
        by_hand=entry.by_hand,
        folder=entry.folder,
        expected=known,
        terms=entry.licence + (f"; to be accepted by {entry.accept}" if entry.accept else ""),
    )


@dataclass(frozen=True, kw_only=True)
class Store:
    """inputs/ and inputs.lock.yaml of the working directory.

    Attributes:
        mirrors: What addresses begin with, and what may stand there instead.
        offline: Whether the network must not be asked.
        patience: With servers.
    """

    mirrors: Mapping[str, str] = field(default_factory=dict)
    offline: bool = False
    patience: Patience = Patience()

    @property
    def lock(self) -> InputsLock:
        """What was found the first time."""
        return InputsLock(path=Path("inputs.lock.yaml"), turn=_WORK / "inputs.lock.yaml.turn")

    def bring(self, thing: Wanted) -> Verified:
        """See to it that a thing is at its path, and is the right one.

        Raises:
            ValueError: It cannot be had, or is another than the expected: what was found, and what was expected.
        """
        within = _WORK / thing.path.relative_to(KEPT)
        with own_turn(within.with_name(f"{within.name}.turn"), called=thing.name):
            if thing.path.exists():
                return self.verify(thing)
            self._refuse_absent(thing)
            logging.getLogger(__name__).info("%s: terms of use: %s", thing.name, thing.terms or "not stated")
            part = Part(path=within.with_name(f"{within.name}.part"))
            verified = self._download(thing, part=part)
            self._keep_to(thing, verified)
            part.become(thing.path)
            return verified

    def verify(self, thing: Wanted) -> Verified:
        """Look at a thing that is here.

        Raises:
            ValueError: It is not the expected one.
        """
        try:
            if thing.path.is_dir() != thing.folder:
                kinds = ("a folder", "a file") if thing.folder else ("a file", "a folder")
                raise Mismatch(f"{thing.path}: expected {kinds[0]}, found {kinds[1]}")
            verified = self._look(thing)
            self._keep_to(thing, verified)
        except Mismatch as error:
            way_out = f"delete it and run `onestep fetch --only {thing.name}`"
            raise ValueError(f"{error}; {way_out}, or {_accept(thing)}") from error
        return verified

    def _look(self, thing: Wanted) -> Verified:
        if not thing.folder:
            return self._expected(thing).check(thing.path, called=str(thing.path))
        described = describe_folder(thing.path)
        return Verified(sha256=described["listing_sha256"], size=described["bytes"])

    def _download(self, thing: Wanted, *, part: Part) -> Verified:
        try:
            return download(
                tuple(self._with_mirrors(thing.addresses)),
                part=part,
                expected=self._expected(thing),
                progress=Progress(thing.path.name),
                patience=self.patience,
            )
        except Unobtainable as error:
            way_out = f"{thing.name}: run again to continue, or bring it by hand to {thing.path}, or {_accept(thing)}"
            raise ValueError(f"{error}\n{way_out}") from error

    def _with_mirrors(self, addresses: tuple[str, ...]) -> Iterator[str]:
        for address in addresses:
            for begins, instead in self.mirrors.items():
                if address.startswith(begins):
                    yield instead + address.removeprefix(begins)
            yield address

    def _expected(self, thing: Wanted) -> Expected:
        """Return what a thing must be: as is publicly known, else as it was the first time."""
        recorded = self.lock.recorded(thing.key)
        if recorded is None or thing.expected.sha256 is not None:
            return thing.expected
        return replace(thing.expected, sha256=recorded.sha256, said_by=str(self.lock.path))

    def _keep_to(self, thing: Wanted, verified: Verified) -> None:
        """Trust on first use: record what was found, where its digest is not public."""
        if thing.expected.sha256 is None:
            self.lock.record(thing.key, verified, called=str(thing.path))

    def _refuse_absent(self, thing: Wanted) -> None:
        if thing.by_hand is not None:
            raise ValueError(absent_by_hand(thing.name, thing.path, by_hand=thing.by_hand))
        if self.offline:
            raise ValueError(absent_offline(thing.name, thing.path))


def _accept(thing: Wanted) -> str:
    if thing.expected.sha256 is not None:
        return f"correct its digest ({thing.expected.said_by})"
    return f"if the new content is wanted, delete the entry {thing.key} of inputs.lock.yaml"
