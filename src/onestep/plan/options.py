"""Which keys of a component's block are its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def own_options(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a component's name and options as the config has them, references to other sections left out."""
    return {key: value for key, value in block.items() if key not in ("input", "run", "features", "references")}
