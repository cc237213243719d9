"""List, download and verify the inputs of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onestep.fetch.local_files import verify_file, verify_placed
from onestep.fetch.store import Store, remote_file
from onestep.inputs import absent, kept_at, placed_at, read_registry
from onestep.plan import Plan
from onestep.plan.inputs import input_source, needed_inputs


def sources_of(plan: Plan, *, only: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return the blocks of the inputs that a config's runs and tables need, or of those in `only`, by name.

    Raises:
        ValueError: A name is neither an input of the config nor an entry of the registry.
    """
    sources: dict[str, Mapping[str, Any]] = {}
    for name in only or needed_inputs(plan):
        if name in plan.experiment.inputs:
            sources[name] = input_source(plan, name)
        elif name in read_registry():
            sources[name] = {"published": name}
        else:
            names = ", ".join(plan.experiment.inputs)
            raise ValueError(f"--only: got {name!r}, expected one of the inputs ({names}) or a published name")
    return sources


def listed(sources: Mapping[str, Mapping[str, Any]], *, plan: Plan) -> Iterator[str]:
    """Yield a line for each input: whether it is here, its origin, its terms; then the names not used by a config."""
    width = max(map(len, sources), default=0)
    for name, source in sources.items():
        here = "here  " if absent(source, name=name) is None else "absent"
        yield f"{name:{width}}  {here}  {_origin(source, name=name)}"
    used = {source.published for source in plan.experiment.inputs.values()}
    if others := [name for name in read_registry() if name not in used]:
        yield f"published, not named in this config: {', '.join(others)}"


def each(act: Callable[..., str], sources: Mapping[str, Mapping[str, Any]], *, store: Store) -> Iterator[str]:
    """Yield the line of `fetched` or `verified` for each input; raise all their errors at the end."""
    complaints = []
    for name, source in sources.items():
        try:
            yield act(source, name=name, store=store)
        except ValueError as error:
            complaints.append(str(error))
    if complaints:
        raise ValueError("\n".join(complaints))


def fetched(source: Mapping[str, Any], *, name: str, store: Store) -> str:
    """Download an input unless it is here, and return a line on it."""
    if "package" in source:
        return f"{name}: part of {source['package']}"
    missing = absent(source, name=name)
    if missing is not None and ("file" in source or store.offline):
        raise ValueError(missing)
    path = kept_at(source, name=name)
    if "file" in source or (missing is None and not path.exists()):
        return f"{name}: is here"
    found = store.fetch(remote_file(source, name=name))
    return f"{name}: {path}, {found.size:,} bytes, sha256 {found.sha256}"


def verified(source: Mapping[str, Any], *, name: str, store: Store) -> str:
    """Verify an input if it is here, and return a line on it."""
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
    found = store.verify(remote_file(source, name=name))
    return f"{name}: {path}, {found.size:,} bytes, sha256 {found.sha256}"


def _origin(source: Mapping[str, Any], *, name: str) -> str:
    if "package" in source:
        return f"{source['path']} of {source['package']}; {source['licence']}"
    if "file" in source:
        return f"{source['file']}; {source.get('licence', 'terms not stated')}"
    file = remote_file(source, name=name)
    size = f"{file.expected.size:,} bytes; " if file.expected.size else ""
    by_hand = file.published.by_hand
    place = f"by hand to {file.path}: {by_hand}" if by_hand else file.published.addresses[0]
    return f"{place}; {size}{file.terms or 'terms not stated'}"
