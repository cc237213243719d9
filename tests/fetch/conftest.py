"""A working directory and a server for tests of downloads; no proxy of the machine is in between."""

from __future__ import annotations

import pytest
from misbehaving_server import running


@pytest.fixture
def server():
    with running() as server:
        yield server


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working directory, which is the current one."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("ONESTEP_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path
