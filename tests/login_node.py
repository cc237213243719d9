"""Commands with this package and those of envs/driver.lock alone, as on a login node: no torch, no timm."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

from tiny import REPOSITORY


def pinned(lock):
    """Return the lines `name==version` of a file in envs/."""
    lines = (REPOSITORY / "envs" / lock).read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


@functools.cache
def _hidden():
    """Return the installed modules that a login node does not have."""
    there = {line.partition("==")[0] for line in pinned("driver.lock")} | {"onestep", "pip"}
    normal = functools.partial(re.sub, r"[-_.]+", "-")
    return [
        module
        for module, names in packages_distributions().items()
        if there.isdisjoint(normal(n).lower() for n in names)
    ]


def on_a_login_node(*arguments, within):
    """Run Python in `within`."""
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("tests/driver_only", "src"))
    environment = {**os.environ, "PYTHONPATH": path, "ONESTEP_HIDDEN": " ".join(_hidden()), "HOME": str(within)}
    return subprocess.run([sys.executable, *arguments], cwd=within, env=environment, capture_output=True, text=True)


def said(*arguments, within):
    """Return the output of a command that must succeed."""
    done = on_a_login_node(*arguments, within=within)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
