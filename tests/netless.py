"""Commands without a network."""

from __future__ import annotations

import shutil
import subprocess

# Runs a command in a network of its own, in which there is nothing: no route, not even loopback.
WITHOUT_NETWORK = ("unshare", "--map-root-user", "--net", "--")


def may_leave_network() -> bool:
    """Whether this machine lets its users have networks of their own."""
    if shutil.which(WITHOUT_NETWORK[0]) is None:
        return False
    return subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True).returncode == 0
