"""Programs on a PATH that holds nothing else: SLURM's commands as they answer, and as they fail."""

from __future__ import annotations

import pytest


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a small program on a PATH that holds nothing else, or change it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name, *lines, code=0, complaint="", script=""):
        quoted = "".join(f"echo '{line}'\n" for line in lines)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n{quoted}echo '{complaint}' >&2\nexit {code}\n")
        (folder / name).chmod(0o755)

    return write
