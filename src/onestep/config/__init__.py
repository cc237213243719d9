"""config.yaml as frozen values, checked before any job starts.

`onestep.config.run` has the values of one training and reads run.yaml with the standard library alone; this module
imports what reads and checks config.yaml (pydantic) at the first use of a name.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {"ConfigError", "Experiment", "Launch", "experiment_document", "parse_experiment", "read_experiment"} | {
    "read_launch",
    "resolved_run",
    "run_backbones",
    "run_document",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("onestep.config.reading"), name)
