"""The verb `fetch`: list, download and verify the inputs of a config."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onestep.fetch.local_files import verify_file, verify_placed
from onestep.fetch.store import Store, fetch_input, read_mirrors, remote_file
from onestep.inputs import absent, is_offline, kept_at, placed_at, read_registry

if TYPE_CHECKING:
    from onestep.plan import Plan


def fetch(
    *,
    config: Path = Path("config.yaml"),
    only: Sequence[str] = (),
    list: bool = False,
    verify: bool = False,
    offline: bool = False,
    source: Mapping[str, Any] | None = None,
    output: Path | None = None,
) -> int:
    """Fetch the input files of config.yaml.

    Args:
        config: The config; its folder is the working directory.
        only: Names of inputs; without it all that runs and tables need.
        list: List the inputs and their licences, and fetch nothing.
        verify: Compare the files that are here with their digests, and fetch nothing.
        offline: Use no network, as with ONESTEP_OFFLINE=1.
        source: One input as the block of config.yaml that describes it (JSON); needs `output`.
        output: File of that one input.
    """
    offline = offline or is_offline()
    if source is not None:
        if output is None:
            raise ValueError("--output: got nothing, expected the file of --source. Fix: add --output FILE")
        fetch_input(source, target=output, store=Store(mirrors=read_mirrors(config), offline=offline))
        return 0
    from onestep.plan import Plan

    with contextlib.chdir(config.parent):
        plan = Plan.read(config.name)
        store, sources = Store(mirrors=plan.experiment.mirrors, offline=offline), _sources(plan, only=only)
        act = _verified if verify else _fetched
        for line in _listed(sources, plan=plan) if list else _each(act, sources, store=store):
            print(line, flush=True)
    return 0


def _sources(plan: Plan, *, only: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return by name the inputs that runs and tables need, or those in `only`: of the config or of the registry."""
    from onestep.plan.inputs import input_source, needed_inputs

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


def _listed(sources: Mapping[str, Mapping[str, Any]], *, plan: Plan) -> Iterator[str]:
    """Yield a line for each input: whether it is here, its origin, its terms; then the names not used by a config."""
    width = max(map(len, sources), default=0)
    for name, source in sources.items():
        here = "here  " if absent(source, name=name) is None else "absent"
        yield f"{name:{width}}  {here}  {_origin(source, name=name)}"
    used = {source.published for source in plan.experiment.inputs.values()}
    if others := [name for name in read_registry() if name not in used]:
        yield f"published, not named in this config: {', '.join(others)}"


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


def _each(act: Callable[..., str], sources: Mapping[str, Mapping[str, Any]], *, store: Store) -> Iterator[str]:
    """Yield the line of `_fetched` or `_verified` for each input; raise all their errors at the end."""
    complaints = []
    for name, source in sources.items():
        try:
            yield f"{name}: {act(source, name=name, store=store)}"
        except ValueError as error:
            complaints.append(str(error))
    if complaints:
        raise ValueError("\n".join(complaints))


def _fetched(source: Mapping[str, Any], *, name: str, store: Store) -> str:
    """Download an input unless it is here, and return a line on it."""
    if "package" in source:
        return f"part of {source['package']}"
    missing = absent(source, name=name)
    if missing is not None and ("file" in source or store.offline):
        raise ValueError(missing)
    path = kept_at(source, name=name)
    if "file" in source or (missing is None and not path.exists()):
        return "is here"
    found = store.fetch(remote_file(source, name=name))
    return f"{path}, {found.size:,} bytes, sha256 {found.sha256}"


def _verified(source: Mapping[str, Any], *, name: str, store: Store) -> str:
    """Verify an input if it is here, and return a line on it."""
    placed = placed_at(source, name=name)
    if absent(source, name=name) is not None or ("package" in source and not placed.exists()):
        return "not here yet"
    if placed.exists():
        verify_placed(placed)
    path = None if "package" in source else kept_at(source, name=name)
    if path is None or not path.exists():
        return f"{placed} has its recorded digest"
    if "file" in source:
        return f"{path}, sha256 {verify_file(path, source.get('sha256'))}"
    found = store.verify(remote_file(source, name=name))
    return f"{path}, {found.size:,} bytes, sha256 {found.sha256}"
