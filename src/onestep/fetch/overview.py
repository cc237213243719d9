"""The inputs of a config for a person: listed, fetched, verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep.fetch.embedded import verify_placed
from onestep.fetch.placing import describe_folder
from onestep.fetch.store import Store, wanted
from onestep.files import sha256_of_file
from onestep.inputs import absent, kept_at, placed_at, read_registry
from onestep.plan import Plan
from onestep.plan.inputs import input_source, needed_inputs


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Some inputs.

    Attributes:
        sources: Their blocks of the config by name.
        others: Names of the registry that the config does not use.
        store: What is here of them.
    """

    sources: Mapping[str, Mapping[str, Any]]
    others: tuple[str, ...]
    store: Store

    @classmethod
    def of(cls, plan: Plan, *, only: Sequence[str], store: Store) -> Overview:
        """Return the overview of those that a config's runs and tables need, or of those that `only` names.

        Raises:
            ValueError: A name is neither an input of the config nor an entry of the registry.
        """
        registry = read_registry()
        used = {source.published for source in plan.experiment.inputs.values()}
        sources = {}
        for name in only or needed_inputs(plan):
            if name not in plan.experiment.inputs and name not in registry:
                known = ", ".join(plan.experiment.inputs)
                raise ValueError(f"--only: found {name!r}, expected one of the inputs ({known}) or a published name")
            inside = name in plan.experiment.inputs
            sources[name] = input_source(plan, name) if inside else {"published": name}
        return cls(sources=sources, others=tuple(name for name in registry if name not in used), store=store)

    def listed(self) -> Iterator[str]:
        """Yield a line for each input: whether it is here, what it is, and under which terms."""
        width = max(map(len, self.sources), default=0)
        for name, source in self.sources.items():
            here = "here  " if absent(source, name=name) is None else "absent"
            yield f"{name:{width}}  {here}  {_origin(source, name=name)}"
        if self.others:
            yield f"published, and not named by this config: {', '.join(self.others)}"

    def brought(self) -> Iterator[str]:
        """Bring what is to be had and yield a line for each input.

        Raises:
            ValueError: Some could not be brought: the lines of all of them.
        """
        return self._each(self._bring)

    def verified(self) -> Iterator[str]:
        """Look at all that is here and yield a line for each input.

        Raises:
            ValueError: Some are not what they must be: the lines of all of them.
        """
        return self._each(self._verify)

    def _each(self, act: Callable[[str, Mapping[str, Any]], str]) -> Iterator[str]:
        """Yield what acting on each input says; what is wrong with some does not keep the others from their turn."""
        complaints = []
        for name, source in self.sources.items():
            try:
                yield act(name, source)
            except ValueError as error:
                complaints.append(str(error))
        if complaints:
            raise ValueError("\n".join(complaints))

    def _bring(self, name: str, source: Mapping[str, Any]) -> str:
        if "package" in source:
            return f"{name}: comes with {source['package']}"
        missing = absent(source, name=name)
        if missing is not None and ("file" in source or self.store.offline):
            raise ValueError(missing)
        path = kept_at(source, name=name)
        if "file" in source or (missing is None and not path.exists()):
            return f"{name}: is here"
        found = self.store.bring(wanted(source, name=name))
        return f"{name}: {path}, {found.size:,} bytes, sha256 {found.sha256}"

    def _verify(self, name: str, source: Mapping[str, Any]) -> str:
        placed = placed_at(source, name=name)
        if absent(source, name=name) is not None or ("package" in source and not placed.exists()):
            return f"{name}: not here yet"
        if placed.exists():
            verify_placed(placed)
        path = None if "package" in source else kept_at(source, name=name)
        if path is None or not path.exists():
            return f"{name}: {placed} is as it was recorded"
        if "file" in source:
            return f"{name}: {path}, sha256 {_verified_file(path, source.get('sha256'))}"
        found = self.store.verify(wanted(source, name=name))
        return f"{name}: {path}, {found.size:,} bytes, sha256 {found.sha256}"


def _verified_file(path: Path, sha256: str | None) -> str:
    found = describe_folder(path)["listing_sha256"] if path.is_dir() else sha256_of_file(path)
    if sha256 not in (None, found):
        raise ValueError(f"{path}: found sha256 {found}, expected {sha256} (config.yaml); bring it again")
    return found


def _origin(source: Mapping[str, Any], *, name: str) -> str:
    """Return where an input comes from, how large it is, and its terms."""
    if "package" in source:
        return f"{source['path']} of {source['package']}; {source['licence']}"
    if "file" in source:
        return f"{source['file']}; {source.get('licence', 'terms not stated')}"
    thing = wanted(source, name=name)
    size = f"{thing.expected.size:,} bytes; " if thing.expected.size else ""
    place = f"by hand to {thing.path}: {thing.by_hand}" if thing.by_hand else thing.addresses[0]
    return f"{place}; {size}{thing.terms or 'terms not stated'}"
