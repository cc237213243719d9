"""config.yaml as frozen values, checked before any job starts.

`onestep.config.run` has the values of one training and reads run.yaml with the standard library alone; the names of
`onestep.config.reading`, which reads and checks config.yaml with pydantic, are imported here at their first use.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("onestep.config.reading"), name)
