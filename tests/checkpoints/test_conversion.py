"""Conversion: a published pickle and a snapshot of our own become teachers of one form."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import edm_writer
import hostile_files
import numpy as np
import pytest
import torch
import yaml

from onestep.checkpoints.conversion import convert_edm_pickle, convert_snapshot
from onestep.checkpoints.edm_pickle import read_edm_pickle
from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.networks import build_denoiser


def published(golden: Any, path: Path, **arguments: Any) -> Path:
    """Write the first recorded network as EDM would publish it."""
    name = min(name for name in golden.manifest["files"] if name.startswith("net_") and name.endswith(".npz"))
    arrays = {key[3:]: array for key, array in golden.load(name).items() if key.startswith("sd/")}
    network = edm_writer.network(arrays, golden.constructor_kwargs(name) | arguments)
    path.write_bytes(edm_writer.dump({"ema": network}))
    return path


@pytest.mark.golden
def test_a_pickle_becomes_a_teacher_that_builds_the_same_network(golden: Any, tmp_path: Path) -> None:
    source = published(golden, tmp_path / "edm.pkl", use_fp16=False)
    convert_edm_pickle(source, weights=tmp_path / "t.safetensors", architecture=tmp_path / "t.yaml")
    teacher, card = read_snapshot(tmp_path / "t.safetensors"), yaml.safe_load((tmp_path / "t.yaml").read_text())
    original = read_edm_pickle(source)
    assert list(teacher.state_dict) == list(original.state_dict)
    assert all(torch.equal(teacher.state_dict[name], tensor) for name, tensor in original.state_dict.items())
    build_denoiser(card["network"]).load_state_dict(teacher.state_dict, strict=True)
    assert card["network"] == teacher.config
    assert next(iter(card["network"])) == "name"
    assert "model_type" not in teacher.config
    assert teacher.config["preconditioning"] == "edm"
    assert card["source"] == teacher.note["source"] == "edm.pkl"
    assert card["sha256"] == teacher.note["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert card["numbers"] == sum(tensor.numel() for tensor in original.state_dict.values())


@pytest.mark.golden
def test_what_stands_around_the_network_of_a_pickle_is_said_from_outside(golden: Any, tmp_path: Path) -> None:
    source = published(golden, tmp_path / "d2o.pkl")
    files = {"weights": tmp_path / "t.safetensors", "architecture": tmp_path / "t.yaml"}
    convert_edm_pickle(source, **files, preconditioning="d2o")
    assert read_snapshot(tmp_path / "t.safetensors").config["preconditioning"] == "d2o"


@pytest.mark.golden
def test_a_pickle_is_converted_again_beside_its_teacher(golden: Any, tmp_path: Path) -> None:
    source, teacher = published(golden, tmp_path / "edm.pkl"), tmp_path / "edm.safetensors"
    made = []
    for _ in range(2):
        convert_edm_pickle(source, weights=teacher, architecture=tmp_path / "edm.yaml")
        made.append(teacher.read_bytes())
    assert made[0] == made[1]


@pytest.mark.golden
def test_conversion_repeats_bitwise(golden: Any, tmp_path: Path) -> None:
    source = published(golden, tmp_path / "edm.pkl")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        convert_edm_pickle(source, weights=tmp_path / name / "t.st", architecture=tmp_path / name / "t.yaml")
    for file in ("t.st", "t.yaml"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.golden
def test_a_snapshot_of_a_run_becomes_a_teacher_of_the_same_form(golden: Any, tmp_path: Path) -> None:
    convert_edm_pickle(published(golden, tmp_path / "e.pkl"), weights=tmp_path / "e", architecture=tmp_path / "e.yaml")
    teacher = read_snapshot(tmp_path / "e")
    write_snapshot(tmp_path / "64000.safetensors", teacher.state_dict, teacher.config, note={"images_seen": 64_000})
    convert_snapshot(tmp_path / "64000.safetensors", weights=tmp_path / "r", architecture=tmp_path / "r.yaml")
    again, card = read_snapshot(tmp_path / "r"), yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert again.config == teacher.config == card["network"]
    assert list(again.state_dict) == list(teacher.state_dict)
    assert again.note["source"] == card["source"] == "64000.safetensors"


def test_the_card_reads_well(tmp_path: Path) -> None:
    config = {"name": "song_unet", "channel_mult": (1, 2), "resample_filter": [1, 1], "dropout": 1e-5}
    write_snapshot(tmp_path / "a.safetensors", {"w": torch.ones(3)}, config)
    convert_snapshot(tmp_path / "a.safetensors", weights=tmp_path / "t.safetensors", architecture=tmp_path / "t.yaml")
    lines = (tmp_path / "t.yaml").read_text().splitlines()
    assert lines[0] == "# The architecture of t.safetensors, and where it came from."
    assert [line for line in lines if not line.startswith(("#", "sha256", "weights_sha256"))] == [
        "source: a.safetensors",
        "numbers: 3",
        "network:",
        "  name: song_unet",
        "  channel_mult: [1, 2]",
        "  dropout: 1.0e-05",
        "  resample_filter: [1, 1]",
    ]


@pytest.mark.parametrize("config", [{}, {"model_type": "ViT"}, {"model_type": ["SongUNet"]}, {"name": 1}])
def test_a_network_of_unknown_kind_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a.safetensors", {"w": torch.ones(3)}, config)
    with pytest.raises(ValueError, match=r"a.safetensors: .*expected SongUNet or DhariwalUNet"):
        convert_snapshot(tmp_path / "a.safetensors", weights=tmp_path / "t", architecture=tmp_path / "t.yaml")


def test_a_hostile_pickle_leaves_no_teacher(tmp_path: Path) -> None:
    source, marker = tmp_path / "evil.pkl", tmp_path / "marker"
    network = edm_writer.network({"w": np.ones(3, np.float32)}, {"model_type": "SongUNet"})
    network.extra = hostile_files.Call(exec, f"open({str(marker)!r}, 'w')")
    source.write_bytes(edm_writer.dump({"ema": network}))
    with pytest.raises(ValueError, match=r"evil.pkl: .*names the global 'builtins.exec'"):
        convert_edm_pickle(source, weights=tmp_path / "t", architecture=tmp_path / "t.yaml")
    assert list(tmp_path.iterdir()) == [source]
