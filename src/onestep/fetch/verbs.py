"""The verb `fetch`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
    from onestep.fetch.store import Store, fetch_input, read_mirrors
    from onestep.inputs import is_offline

    offline = offline or is_offline()
    if source is not None:
        if output is None:
            raise ValueError("--output: got nothing, expected the file of --source. Fix: add --output FILE")
        fetch_input(source, target=output, store=Store(mirrors=read_mirrors(config), offline=offline))
        return 0
    from onestep.fetch import overview
    from onestep.plan import Plan

    with contextlib.chdir(config.parent):
        plan = Plan.read(config.name)
        store, sources = Store(mirrors=plan.experiment.mirrors, offline=offline), overview.sources_of(plan, only=only)
        act = overview.verified if verify else overview.fetched
        for line in overview.listed(sources, plan=plan) if list else overview.each(act, sources, store=store):
            print(line, flush=True)
    return 0
