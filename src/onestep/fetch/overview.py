"""List, download and verify the inputs of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onestep.fetch.local_files import verify_file, verify_placed
from onestep.fetch.store import Store, remote_file
from onestep.inputs import absent, kept_at, placed_at, read_registry
from onestep.plan import Plan
from onestep.plan.inputs import input_source, needed_inputs


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Inputs of a config.

    Attributes:
        sources: Their blocks in the config, by name.
        others: Names of the registry that the config does not use.
        store: Store of inputs.
    """

    sources: Mapping[str, Mapping[str, Any]]
    others: tuple[str, ...]
    store: Store

    @classmethod
    def of(cls, plan: Plan, *, only: Sequence[str], store: Store) -> Overview:
        """Return the overview of the inputs that a config's runs and tables need, or of those in `only`.

        Raises:
            ValueError: A name is neither an input of the config nor an entry of the registry.
        """
        registry = read_registry()
        used = {source.published for source in plan.experiment.inputs.values()}
        sources: dict[str, Mapping[str, Any]] = {}
        for name in only or needed_inputs(plan):
            if name in plan.experiment.inputs:
                sources[name] = input_source(plan, name)
            elif name in registry:
                sources[name] = {"published": name}
            else:
                names = ", ".join(plan.experiment.inputs)
                raise ValueError(f"--only: got {name!r}, expected one of the inputs ({names}) or a published name")
        return cls(sources=sources, others=tuple(name for name in registry if name not in used), store=store)

    def listed(self) -> Iterator[str]:
        """Yield a line for each input: whether it is here, its origin, its terms."""
        width = max(map(len, self.sources), default=0)
        for name, source in self.sources.items():
            here = "here  " if absent(source, name=name) is None else "absent"
            yield f"{name:{width}}  {here}  {_origin(source, name=name)}"
        if self.others:
            yield f"published, not named in this config: {', '.join(self.others)}"

    def fetched(self) -> Iterator[str]:
        """Download what is missing and yield a line for each input.

        Raises:
            ValueError: Some are unobtainable: a line for each of them.
        """
        return self._each(self._fetch)

    def verified(self) -> Iterator[str]:
        """Verify the inputs that are here and yield a line for each input.

        Raises:
            ValueError: The content of some differs: a line for each of them.
        """
        return self._each(self._verify)

    def _each(self, act: Callable[[str, Mapping[str, Any]], str]) -> Iterator[str]:
        """Yield the result for each input; collect errors until all are done."""
        complaints = []
        for name, source in self.sources.items():
            try:
                yield act(name, source)
            except ValueError as error:
                complaints.append(str(error))
        if complaints:
            raise ValueError("\n".join(complaints))

    def _fetch(self, name: str, source: Mapping[str, Any]) -> str:
        if "package" in source:
            return f"{name}: part of {source['package']}"
        missing = absent(source, name=name)
        if missing is not None and ("file" in source or self.store.offline):
            raise ValueError(missing)
        path = kept_at(source, name=name)
        if "file" in source or (missing is None and not path.exists()):
            return f"{name}: is here"
        found = self.store.fetch(remote_file(source, name=name))
        return f"{name}: {path}, {found.size:,} bytes, sha256 {found.sha256}"

    def _verify(self, name: str, source: Mapping[str, Any]) -> str:
        placed = placed_at(source, name=name)
        if absent(source, name=name) is not None or ("package" in source and not placed.exists()):
            return f"{name}: not here yet"
        if placed.exists():
            verify_placed(placed)
        path = None if "package" in source else kept_at(source, name=name)
        if path is None or not path.exists():
            return f"{name}: {placed} has its recorded digest"
        if "file" in source:
            return f"{name}: {path}, sha256 {verify_file(path, source.get('sha256'))}"
        found = self.store.verify(remote_file(source, name=name))
        return f"{name}: {path}, {found.size:,} bytes, sha256 {found.sha256}"


def _origin(source: Mapping[str, Any], *, name: str) -> str:
    """Return the origin of an input, its size and its terms."""
    if "package" in source:
        return f"{source['path']} of {source['package']}; {source['licence']}"
    if "file" in source:
        return f"{source['file']}; {source.get('licence', 'terms not stated')}"
    file = remote_file(source, name=name)
    size = f"{file.expected.size:,} bytes; " if file.expected.size else ""
    place = f"by hand to {file.path}: {file.by_hand}" if file.by_hand else file.addresses[0]
    return f"{place}; {size}{file.terms or 'terms not stated'}"
