"""From a name in config.yaml to the one public class of a file: `load("metrics", "frechet")`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from onestep.absent import stood_in


def choices(family: str) -> tuple[str, ...]:
    """Return the names config.yaml may use for `family`: its files without a leading underscore, sorted."""
    with stood_in():
        package = importlib.import_module(f"onestep.{family}")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


def load(family: str, name: str) -> Any:
    """Return the one public name of the file `onestep/<family>/<name>.py`.

    Raises:
        ValueError: There is no such file; the message lists the choices.
    """
    if ":" in name:
        file, _, public = name.partition(":")
        return getattr(importlib.import_module(file), public)
    if name not in choices(family):
        raise ValueError(f"no {family} called {name!r}; choices: {', '.join(choices(family))}")
    with stood_in():
        module = importlib.import_module(f"onestep.{family}.{name}")
    (public,) = module.__all__
    return getattr(module, public)
