"""Snapshots: what is written is what is read, in the same bytes each time; any other file is one clear error."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onestep.checkpoints.snapshot import read_snapshot, write_snapshot

CONFIG = {"name": "song_unet", "channel_mult": (1, 2), "dropout": 0.13, "preconditioning": "edm"}
NOTE = {"images_seen": 128_000, "digest": "abc"}


def tensors() -> dict[str, Tensor]:
    """Return tensors of every number type and of every layout in memory, in no alphabetic order."""
    torch.manual_seed(0)
    shared = torch.randn(4, 6)
    return {
        "z.flags": torch.tensor([True, False, True]),
        "b.weight": nn.Parameter(shared),
        "a.tied": shared,
        "a.turned": shared.t(),
        "a.part": shared[1:3, ::2],
        "a.spread": torch.randn(3, 1).expand(3, 4),
        "c.scalar": torch.tensor(1.5),
        "c.count": torch.tensor(2**40),
        "c.nothing": torch.randn(0, 3),
        "d.octets": torch.arange(5, dtype=torch.uint8),
        "d.double": torch.randn(3).double(),
        "d.half": torch.randn(3).half(),
        "d.brain": torch.randn(3).bfloat16(),
        "d.last": torch.randn(2).contiguous(memory_format=torch.contiguous_format),
        "d.images": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    }


def test_a_snapshot_comes_back_bitwise_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "128000.safetensors"
    write_snapshot(path, tensors(), CONFIG, note={"images_seen": 128_000})
    snapshot = read_snapshot(path)
    assert snapshot.config == CONFIG | {"channel_mult": [1, 2]}
    assert snapshot.note == {"images_seen": 128_000}
    assert list(snapshot.state_dict) == list(tensors())
    for name, tensor in tensors().items():
        assert snapshot.state_dict[name].dtype == tensor.dtype
        assert torch.equal(snapshot.state_dict[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a.safetensors", tensors(), CONFIG)
    loaded = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors().items())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "onestep-snapshot-1"
        assert json.loads(file.metadata()["config"])["name"] == "song_unet"


def test_the_snapshot_does_not_depend_on_its_file_any_more(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_snapshot(path, tensors(), CONFIG)
    snapshot = read_snapshot(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(snapshot.state_dict["d.double"], tensors()["d.double"])


def test_equal_networks_give_equal_bytes_in_any_process(tmp_path: Path) -> None:
    program = "import sys, test_snapshot as t; t.write_snapshot(sys.argv[1], t.tensors(), t.CONFIG, note=t.NOTE)"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program, tmp_path / "theirs"], env=environment, check=True, timeout=120)
    write_snapshot(tmp_path / "mine", tensors(), CONFIG, note=NOTE)
    write_snapshot(tmp_path / "again", tensors(), dict(reversed(CONFIG.items())), note=NOTE)
    assert (tmp_path / "mine").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert (tmp_path / "mine").read_bytes() == (tmp_path / "again").read_bytes()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_snapshot(path, tensors(), CONFIG)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'more' is torch.complex64; expected a tensor of F64"):
        write_snapshot(path, tensors() | {"more": torch.ones(1, dtype=torch.complex64)}, CONFIG)
    with pytest.raises(ValueError, match="'more' is list; expected a tensor"):
        write_snapshot(path, tensors() | {"more": [1]}, CONFIG)
    with pytest.raises(ValueError, match="a.safetensors: the config .*Out of range"):
        write_snapshot(path, tensors(), CONFIG | {"sigma_max": float("inf")})
    with pytest.raises(ValueError, match="a.safetensors: the note .*PosixPath"):
        write_snapshot(path, tensors(), CONFIG, note={"path": path})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_file_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_snapshot(path, tensors(), CONFIG)
    content = path.read_bytes()
    for length in (0, 4, 8, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="a.safetensors: not a whole safetensors file"):
            read_snapshot(path)


@pytest.mark.parametrize("content", [b"text\n" * 100, b"PK\x03\x04" + b"\0" * 100, struct.pack("<Q", 2**60) + b"{}"])
def test_a_file_of_another_kind_is_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="a.safetensors: not a whole safetensors file"):
        read_snapshot(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (None, "without a network's config .format None"),
        ({"format": "pt"}, "without a network's config .format 'pt'"),
        ({"format": "onestep-snapshot-1"}, "the config in the file's header is missing or damaged"),
        ({"format": "onestep-snapshot-1", "config": "{}"}, "the note in the file's header is missing or damaged"),
        ({"format": "onestep-snapshot-1", "config": "[1]", "note": "{}"}, "the config in the file's header"),
        ({"format": "onestep-snapshot-1", "config": "[" * 10**5, "note": "{}"}, "the config in the file's header"),
    ],
)
def test_safetensors_that_are_no_snapshot_are_one_error(
    texts: dict[str, str] | None, found: str, tmp_path: Path
) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", metadata=texts)
    with pytest.raises(ValueError, match=f"a.safetensors: .*{found}"):
        read_snapshot(tmp_path / "a.safetensors")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_snapshot(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_snapshot(tmp_path)
