"""Digests beside files, compared by every reader of networks; and weights that are not finite."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from checkpoints import edm_writer
from onestep.checkpoints.conversion import convert_edm_pickle
from onestep.checkpoints.digests import WEIGHTS, checked, read_record, sealed
from onestep.checkpoints.published_weights import (
    read_class_embeddings,
    read_published_weights,
    write_class_embeddings,
)
from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.classifiers import build_classifier
from onestep.cli import main
from onestep.files import sha256_of_file, write_json
from onestep.networks import build_denoiser

_DENOISER = {"name": "song_unet", "img_resolution": 8, "img_channels": 1, "label_dim": 0, "model_channels": 16}
_DENOISER |= {"channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "preconditioning": "edm"}
_CLASSIFIER = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 3, "width": 8}
_NAME = "model.map_layer0.weight"


def _flip(path: Path, share: float = 0.6) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a published run with one snapshot of a denoiser."""
    torch.manual_seed(0)
    folder = tmp_path / "runs" / "a"
    digest = write_snapshot(folder / "snapshots/64.safetensors", build_denoiser(_DENOISER).state_dict(), _DENOISER)
    write_json(folder / "summary.json", sealed({"images_seen": 64, "files": {"snapshots/64.safetensors": digest}}))
    return folder


def sample(weights: Path, output: Path, **options: object) -> int:
    sampler = json.dumps({"name": "one_step", **options})
    words = ["sample", "--weights", str(weights), "--sampler", sampler, "--seeds", "0-3", "--output", str(output)]
    return main(words)


def test_writing_returns_the_digest_of_the_file(run):
    snapshot = run / "snapshots/64.safetensors"
    assert read_record(run / "summary.json")["files"] == {"snapshots/64.safetensors": sha256_of_file(snapshot)}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_flipped_bit_of_a_snapshot_is_refused_by_name(run, tmp_path, capsys, share):
    snapshot = run / "snapshots/64.safetensors"
    assert sample(snapshot, tmp_path / "s.npz") == 0
    (tmp_path / "s.npz").unlink()
    _flip(snapshot, share)
    assert sample(snapshot, tmp_path / "s.npz") == 1 and not (tmp_path / "s.npz").exists()
    words = ["convert", "--source", str(snapshot), "--output", str(tmp_path / "t.safetensors")]
    assert main(words) == 1 and not (tmp_path / "t.safetensors").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if str(snapshot) in line and "summary.json" in line]) == len(lines) == 2


def test_another_network_in_the_place_of_a_snapshot_is_refused(run, tmp_path):
    torch.manual_seed(1)
    write_snapshot(run / "snapshots/64.safetensors", build_denoiser(_DENOISER).state_dict(), _DENOISER)
    with pytest.raises(ValueError, match=r"64\.safetensors"):
        read_snapshot(run / "snapshots/64.safetensors")


def test_runs_of_earlier_versions_and_files_alone_are_read(run, tmp_path):
    snapshot = run / "snapshots/64.safetensors"
    shutil.copy(snapshot, tmp_path / "alone.safetensors")
    _flip(tmp_path / "alone.safetensors", 0.9)
    assert read_snapshot(tmp_path / "alone.safetensors").config == _DENOISER
    write_json(run / "summary.json", {"images_seen": 64})
    _flip(snapshot, 0.9)
    assert read_snapshot(snapshot).config == _DENOISER
    (run / "summary.json").unlink()
    assert read_snapshot(snapshot).config == _DENOISER


@pytest.mark.parametrize("content", ["null", "[1]", "{", "\xff", "[" * 50_000])
def test_a_summary_of_another_shape_is_named(run, content):
    (run / "summary.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"summary\.json"):
        read_snapshot(run / "snapshots/64.safetensors")


def test_a_digit_of_a_sealed_record_is_compared(run):
    text = (run / "summary.json").read_text()
    (run / "summary.json").write_text(text.replace("64,", "65,"))
    with pytest.raises(ValueError, match=r"summary\.json"):
        read_record(run / "summary.json")


def test_a_teacher_is_compared_with_its_card(run, tmp_path):
    teacher = tmp_path / "teachers/t.safetensors"
    assert main(["convert", "--source", str(run / "snapshots/64.safetensors"), "--output", str(teacher)]) == 0
    assert yaml.safe_load(teacher.with_suffix(".yaml").read_text())[WEIGHTS] == sha256_of_file(teacher)
    assert sample(teacher, tmp_path / "s.npz") == 0
    _flip(teacher)
    assert sample(teacher, tmp_path / "s.npz") == 1
    with pytest.raises(ValueError, match=r"t\.safetensors.*t\.yaml"):
        checked(teacher)


def test_class_embeddings_are_compared_with_the_record_beside_them(tmp_path):
    path = tmp_path / "e.safetensors"
    write_class_embeddings(path, torch.ones(3, 4), note={"images": 3})
    assert json.loads(path.with_suffix(".json").read_text()) == {WEIGHTS: sha256_of_file(path), "images": 3}
    assert torch.equal(read_class_embeddings(path), torch.ones(3, 4))
    other = tmp_path / "o.safetensors"
    write_class_embeddings(other, torch.zeros(3, 4), note={"images": 3})
    shutil.copyfile(other, path)
    with pytest.raises(ValueError, match=r"e\.safetensors.*e\.json"):
        read_class_embeddings(path)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [_pipe, _zeros, _loop, Path.mkdir])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pkl"])
def test_what_is_no_file_is_named_at_once(tmp_path, make: Callable[[Path], None], name):
    make(tmp_path / name)
    read = {".safetensors": read_snapshot, ".pth": read_published_weights, ".pkl": read_class_embeddings}
    with pytest.raises((ValueError, OSError), match=name):
        read[Path(name).suffix](tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value, capsys):
    state = {name: tensor.clone() for name, tensor in build_denoiser(_DENOISER).state_dict().items()}
    state[_NAME].view(-1)[-1] = value
    write_snapshot(tmp_path / "g.safetensors", state, _DENOISER)
    assert sample(tmp_path / "g.safetensors", tmp_path / "s.npz") == 1
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    kwargs = {"model_type": "SongUNet", **{key: each for key, each in _DENOISER.items() if key != "name"}}
    (tmp_path / "g.pkl").write_bytes(edm_writer.dump({"ema": edm_writer.network(arrays, kwargs)}))
    for name in ("g.safetensors", "g.pkl"):
        assert main(["convert", "--source", str(tmp_path / name), "--output", str(tmp_path / "t.safetensors")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(_NAME in line and "/g." in line for line in lines)
    assert not list(tmp_path.glob("[st].*"))


def test_backbones_and_published_weights_that_are_not_finite_are_named(tmp_path):
    from onestep.discriminators import build_backbone

    state = {name: tensor.clone() for name, tensor in build_classifier(_CLASSIFIER).state_dict().items()}
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name].view(-1)[0] = float("nan")
    write_snapshot(tmp_path / "b.safetensors", state, _CLASSIFIER)
    torch.save(state, tmp_path / "b.pth")
    for read in (
        lambda: build_backbone(tmp_path / "b.safetensors", timm=None),
        lambda: read_published_weights(tmp_path / "b.safetensors"),
        lambda: read_published_weights(tmp_path / "b.pth"),
    ):
        with pytest.raises(ValueError, match=rf"b\.(safetensors|pth): {name}: "):
            read()


@pytest.mark.parametrize("sigma", [1e300, 1e305])
def test_pixels_that_are_not_finite_are_refused_with_the_model(run, tmp_path, capsys, sigma):
    snapshot = run / "snapshots/64.safetensors"
    assert sample(snapshot, tmp_path / "s.npz", sigma=sigma) == 1
    assert str(snapshot) in capsys.readouterr().err and not (tmp_path / "s.npz").exists()


def test_a_conversion_of_finite_weights_goes_through(tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in build_denoiser(_DENOISER).state_dict().items()}
    kwargs = {"model_type": "SongUNet", **{key: each for key, each in _DENOISER.items() if key != "name"}}
    (tmp_path / "g.pkl").write_bytes(edm_writer.dump({"ema": edm_writer.network(arrays, kwargs)}))
    convert_edm_pickle(tmp_path / "g.pkl", weights=tmp_path / "t.safetensors", architecture=tmp_path / "t.yaml")
    assert checked(tmp_path / "t.safetensors") == tmp_path / "t.safetensors"
