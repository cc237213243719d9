"""A published folder is downloaded file by file, each verified, and continued where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from misbehaving_server import CONTENT, OTHER

from onestep.fetch.download import Expected, Patience
from onestep.fetch.store import RemoteFile, Store
from onestep.inputs import Published, read_registry

NAMES = ("config.json", "weights.safetensors")
STORE = Store(patience=Patience(attempts=2, pause=0.01, longest=0.02, silence=0.3))


def folder(server) -> RemoteFile:
    addresses = tuple(server.address(f"/{name}") for name in NAMES)
    published = Published(licence="MIT", filename="unet", addresses=addresses, folder=True)
    return RemoteFile(
        name="unet", key="unet", path=Path("inputs/unet"), published=published, expected=Expected(source="registry")
    )


def test_all_its_files_are_fetched_and_recorded(server, work):
    for name in NAMES:
        server.put(f"/{name}", CONTENT)
    found = STORE.fetch(folder(server))
    assert {path.name: path.read_bytes() for path in Path("inputs/unet").iterdir()} == dict.fromkeys(NAMES, CONTENT)
    assert found.size == 2 * len(CONTENT)
    recorded = yaml.safe_load(Path("inputs.lock.yaml").read_text())
    assert recorded.keys() == {"unet", *(server.address(f"/{name}") for name in NAMES)}
    assert STORE.fetch(folder(server)) == found  # nothing is left to do


def test_a_file_that_is_missing_is_fetched_later_and_another_content_is_refused(server, work):
    server.put("/config.json", CONTENT)
    with pytest.raises(ValueError, match="weights.safetensors"):
        STORE.fetch(folder(server))
    server.put("/weights.safetensors", CONTENT)
    STORE.fetch(folder(server))
    Path("inputs/unet/config.json").write_bytes(OTHER[:3])
    with pytest.raises(ValueError, match="config.json: got"):
        STORE.fetch(folder(server))


def test_offline_the_file_that_is_absent_is_named(server, work):
    with pytest.raises(ValueError, match="unet/config.json"):
        Store(offline=True).fetch(folder(server))


def test_the_folders_of_the_registry_have_files_or_words():
    for name, entry in read_registry().items():
        if entry.folder:
            assert bool(entry.addresses) != bool(entry.by_hand), name
