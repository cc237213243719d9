"""Training states: whole or absent, the last two kept, damage passed over, optimizers resumed bitwise."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onestep.checkpoints.training_state import (
    discard_training_states,
    load_optimizer,
    optimizer_tensors,
    read_training_state,
    write_training_state,
)


def write(folder: Path, images_seen: int, **options: Any) -> Path:
    tensors = {"player.weight": torch.full((1000,), float(images_seen)), "random.cpu": torch.get_rng_state()}
    values = {"images": images_seen, "order": [3, 1, 2], "rate": 0.1 + 0.2}
    return write_training_state(folder, images_seen=images_seen, tensors=tensors, values=values, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_bitwise(tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "folder", 128_000)
    assert path.name == "state-000000128000"
    assert names(path) == ["manifest.json", "state.safetensors"]
    state = read_training_state(path.parent)
    assert state is not None
    assert (state.images_seen, state.path) == (128_000, path)
    assert state.values == {"images": 128_000, "order": [3, 1, 2], "rate": 0.1 + 0.2}
    assert torch.equal(state.tensors["random.cpu"], torch.get_rng_state())
    assert torch.equal(state.tensors["player.weight"], torch.full((1000,), 128_000.0))


def test_no_state_is_none(tmp_path: Path) -> None:
    assert read_training_state(tmp_path / "absent") is None
    (tmp_path / "log.jsonl").write_text("")
    assert read_training_state(tmp_path) is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for images_seen in (9_000, 10_000, 1_000_000_000_000, 2_000_000_000_000):
        write(tmp_path, images_seen)
    assert names(tmp_path) == ["state-1000000000000", "state-2000000000000"]
    write(tmp_path, 3_000_000_000_000, keep=1)
    assert names(tmp_path) == ["state-3000000000000"]


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    for name in ("log.jsonl", "state-old", ".hidden.tmp"):
        (tmp_path / name).write_text("")
    for images_seen in (1000, 2000, 3000):
        write(tmp_path, images_seen)
    discard_training_states(tmp_path)
    assert names(tmp_path) == [".hidden.tmp", "log.jsonl", "state-old"]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _edit(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["values"]["images"] += 1
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda path: _flip(path / "state.safetensors"), "SHA-256"),
    "a file cut short": (lambda path: os.truncate(path / "state.safetensors", 100), "has 100 bytes"),
    "an empty file": (lambda path: os.truncate(path / "state.safetensors", 0), "has 0 bytes"),
    "a missing file": (lambda path: (path / "state.safetensors").unlink(), "No such file"),
    "a missing manifest": (lambda path: (path / "manifest.json").unlink(), "No such file"),
    "a manifest cut short": (lambda path: os.truncate(path / "manifest.json", 50), "not a JSON file"),
    "a manifest of another format": (lambda path: (path / "manifest.json").write_text("{}"), "not of the format"),
    "a manifest that is a list": (lambda path: (path / "manifest.json").write_text("[]"), "not of the format"),
    "a manifest with other values": (_edit, "SHA-256"),
    "an empty folder": (lambda path: [file.unlink() for file in path.iterdir()], "No such file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_state_falls_back_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1000)
    newest = write(tmp_path, 2000)
    act, reason = DAMAGES[damage]
    act(newest)
    with caplog.at_level(logging.WARNING):
        state = read_training_state(tmp_path)
    assert state is not None
    assert state.images_seen == 1000
    (record,) = caplog.records
    assert str(newest) in record.getMessage()
    assert reason in record.getMessage()


def test_a_state_under_another_name_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, 1000).rename(tmp_path / "state-000000005000")
    write(tmp_path, 2000)
    state = read_training_state(tmp_path)
    assert state is not None
    assert state.images_seen == 2000


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    for path in [write(tmp_path, images_seen) for images_seen in (1000, 2000)]:
        _flip(path / "state.safetensors")
    with pytest.raises(ValueError, match="all 2 training states .*state-000000002000"):
        read_training_state(tmp_path)


def test_a_damaged_state_does_not_count_among_the_kept(tmp_path: Path) -> None:
    write(tmp_path, 1000)
    _flip(write(tmp_path, 2000) / "state.safetensors")
    write(tmp_path, 3000)
    assert names(tmp_path) == ["state-000000001000", "state-000000003000"]


def test_a_state_is_written_in_place_of_a_damaged_one(tmp_path: Path) -> None:
    write(tmp_path, 1000)
    _flip(write(tmp_path, 2000) / "state.safetensors")
    write(tmp_path, 2000)
    state = read_training_state(tmp_path)
    assert state is not None
    assert state.images_seen == 2000
    assert len(names(tmp_path)) == 2


def test_after_a_fallback_the_states_written_anew_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 1000)
    _flip(write(tmp_path, 3000) / "state.safetensors")
    for images_seen in (1500, 2000):
        write(tmp_path, images_seen)
    assert names(tmp_path) == [f"state-{images:012d}" for images in (1500, 2000, 3000)]
    write(tmp_path, 3500)
    assert names(tmp_path) == [f"state-{images:012d}" for images in (2000, 3500)]


def test_leftovers_of_dead_processes_are_swept_and_others_stay(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    owners = {f"{host}.{gone.pid}": "dead", f"{host}.{os.getppid()}": "alive", f"other-{host}.{gone.pid}": "elsewhere"}
    for owner, name in owners.items():
        leftover = tmp_path / f".state-000000001000.writing.{owner}.tmp"
        leftover.mkdir()
        (leftover / name).write_text("")
    old = tmp_path / f".state-000000002000.removing.other-{host}.1.tmp"
    old.mkdir()
    os.utime(old, (0, 0))
    write(tmp_path, 3000)
    assert sorted(path.name for path in tmp_path.glob(".state-*/*")) == ["alive", "elsewhere"]
    assert not old.exists()


@pytest.mark.parametrize("values", [{"rate": math.nan}, {"path": Path("a")}, {"set": {1}}])
def test_values_that_json_cannot_keep_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, 1000)
    with pytest.raises(ValueError, match="JSON"):
        write_training_state(tmp_path, images_seen=2000, tensors={}, values=values)
    write(tmp_path, 3000)
    assert names(tmp_path) == ["state-000000001000", "state-000000003000"]


def test_senseless_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        write(tmp_path, 1000, keep=0)
    with pytest.raises(ValueError, match="images_seen -1"):
        write(tmp_path, -1)


def test_number_keys_and_tuples_come_back_as_json_keeps_them(tmp_path: Path) -> None:
    write_training_state(tmp_path, images_seen=0, tensors={}, values={"a": {10: (1, 2), 9: 0}})
    state = read_training_state(tmp_path)
    assert state is not None
    assert state.values == {"a": {"10": [1, 2], "9": 0}}


def test_a_writer_killed_at_any_moment_leaves_its_last_state(tmp_path: Path) -> None:
    program = Path(__file__).with_name("killed_writer.py")
    command = [sys.executable, program, tmp_path, "25", "7"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True, timeout=120
    )
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == 25
    assert kills[-1]["read"] >= 25_000
    for kill in kills:
        assert kill["read"] >= kill["done"]
        assert kill["own"] or kill["read"] == 0
        assert sum(name.startswith("state-") for name in kill["left"]) <= 3
        assert len(kill["left"]) <= 6
    assert any(name.startswith(".") for kill in kills for name in kill["left"]), "no kill came in the middle of a write"


class Players(nn.Module):
    """A network of which one parameter is frozen and one never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)
        self.idle = nn.Parameter(torch.randn(4))
        self.first.bias.requires_grad_(False)


def _steps(network: Players, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        images = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad(set_to_none=True)
        network.second(network.first(images).relu()).square().mean().backward()
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[Players], torch.optim.Optimizer]] = {
    "adam": lambda n: torch.optim.Adam(n.parameters(), lr=1e-2, betas=(0.0, 0.99)),
    "adam, amsgrad": lambda n: torch.optim.Adam(n.parameters(), lr=1e-2, amsgrad=True, weight_decay=0.1),
    "adam, foreach": lambda n: torch.optim.Adam(n.parameters(), lr=1e-2, foreach=True),
    "adam, fused": lambda n: torch.optim.Adam(n.parameters(), lr=1e-2, fused=True),
    "adamw, two groups": lambda n: torch.optim.AdamW(
        [{"params": n.first.parameters(), "lr": 1e-3}, {"params": [*n.second.parameters(), n.idle]}], lr=1e-2
    ),
    "radam": lambda n: torch.optim.RAdam(n.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_bitwise(name: str, tmp_path: Path) -> None:
    undisturbed, resumed = Players(), Players()
    optimizer = OPTIMIZERS[name](undisturbed)
    _steps(undisturbed, optimizer, range(5))
    optimizer.param_groups[0]["lr"] = 3e-3
    moments, values = optimizer_tensors(optimizer)
    tensors = {f"weights.{key}": value for key, value in undisturbed.state_dict().items()}
    tensors |= {f"moments.{key}": value for key, value in moments.items()}
    write_training_state(tmp_path, images_seen=30, tensors=tensors, values={"optimizer": values})
    _steps(undisturbed, optimizer, range(5, 10))

    state = read_training_state(tmp_path)
    assert state is not None
    resumed.load_state_dict({key[8:]: value for key, value in state.tensors.items() if key.startswith("weights.")})
    other = OPTIMIZERS[name](resumed)
    saved = {key[8:]: value for key, value in state.tensors.items() if key.startswith("moments.")}
    load_optimizer(other, saved, state.values["optimizer"])
    assert isinstance(other.param_groups[0]["betas"], tuple)
    _steps(resumed, other, range(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True))
    again, _ = optimizer_tensors(other)
    assert {key: value.tolist() for key, value in again.items()} == {
        key: value.tolist() for key, value in optimizer_tensors(optimizer)[0].items()
    }


def test_how_an_optimizer_computes_is_its_own_choice() -> None:
    network = Players()
    saved = torch.optim.Adam(network.parameters(), lr=1e-2, foreach=True)
    _steps(network, saved, range(2))
    plain = torch.optim.Adam(network.parameters(), lr=5.0, foreach=False)
    load_optimizer(plain, *optimizer_tensors(saved))
    assert plain.param_groups[0]["foreach"] is False
    assert plain.param_groups[0]["lr"] == 1e-2


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    network = Players()
    saved = torch.optim.Adam(network.parameters())
    _steps(network, saved, range(1))
    parts = optimizer_tensors(saved)
    with pytest.raises(ValueError, match=r"groups of sizes \[2\], the saved one had \[5\]"):
        load_optimizer(torch.optim.Adam(network.first.parameters()), *parts)
    network.first.weight = nn.Parameter(torch.randn(7, 6))
    with pytest.raises(ValueError, match=r"exp_avg of parameter 1 has the shape \[7, 5\], the parameter \[7, 6\]"):
        load_optimizer(torch.optim.Adam(network.parameters()), *parts)
