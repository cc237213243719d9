"""Folders of diffusers with a UNet2DModel: read as published, and refused by name where they are anything else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edm_writer
import hostile_files
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from onestep.checkpoints.diffusers_folder import read_unet2d
from onestep.checkpoints.snapshot import write_snapshot
from onestep.cli import main
from onestep.fetch.local_files import fetch_file
from onestep.networks import load_denoiser
from unet2d_folders import SMALL, network_config, small_unet2d, write_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"
DDPM = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "unet")
    return tmp_path / "unet"


def convert(folder: Path, *options: str) -> tuple[int, Path]:
    target = folder.with_name("teacher.safetensors")
    return main(["convert", "--source", str(folder), "--output", str(target), *options]), target


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}


@pytest.mark.parametrize("options", [(), ("--preconditioning", "ddpm")])
def test_a_folder_becomes_a_teacher(folder: Path, options: tuple[str, ...]) -> None:
    code, target = convert(folder, *options)
    assert code == 0
    network, expected = load_denoiser(target), tensors_of(folder)
    assert network.preconditioning == "ddpm" and (network.img_resolution, network.img_channels) == (16, 1)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    card = yaml.safe_load(target.with_suffix(".yaml").read_text())
    assert card["source"] == f"unet/{WEIGHTS}" and card["class_name"] == "UNet2DModel"
    assert network_config(SMALL).items() <= card["network"].items()
    before = target.read_bytes()
    assert convert(folder)[0] == 0 and target.read_bytes() == before


def test_the_input_of_a_folder_names_it(folder: Path, tmp_path: Path) -> None:
    placed = tmp_path / "results" / "unet.folder"
    fetch_file(folder, None, target=placed)
    assert main(["convert", "--source", str(placed), "--output", str(tmp_path / "t.safetensors")]) == 0
    assert load_denoiser(tmp_path / "t.safetensors").preconditioning == "ddpm"


def _in_a_pipeline(folder: Path) -> None:
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(DDPM))
    (folder / "unet").mkdir()
    for name in ("config.json", WEIGHTS):
        (folder / name).rename(folder / "unet" / name)


def _with(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def _old_name(name: str) -> str:
    for new, old in OLD.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _as_convolutions(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :, None, None] if "attentions" in name and tensor.ndim == 2 else tensor


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


FORMS: dict[str, Callable[[Path], None]] = {
    "a pipeline": _in_a_pipeline,
    "old names": lambda folder: _with(folder, lambda all_: {_old_name(name): each for name, each in all_.items()}),
    "old names, as convolutions": lambda folder: _with(
        folder, lambda all_: {_old_name(name): _as_convolutions(name, each).contiguous() for name, each in all_.items()}
    ),
    "tensors of torch.save": _pickled,
    "a scheduler of DDPM": lambda folder: (folder / "scheduler_config.json").write_text(json.dumps(DDPM)) and None,
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_same_network(folder: Path, form: str) -> None:
    expected = tensors_of(folder)
    FORMS[form](folder)
    found = read_unet2d(folder)
    assert found.state_dict.keys() == expected.keys()
    assert all(torch.equal(found.state_dict[name], tensor) for name, tensor in expected.items())


def test_half_precision_is_read_as_single_precision(folder: Path) -> None:
    _with(folder, lambda all_: {name: each.half() for name, each in all_.items()})
    found, expected = read_unet2d(folder).state_dict, tensors_of(folder)
    assert all(
        found[name].dtype == torch.float32 and torch.equal(found[name], expected[name].float()) for name in found
    )


def test_classes_and_defaults_of_diffusers(tmp_path: Path) -> None:
    options = {"num_class_embeds": 5, "norm_eps": 1e-5, "downsample_padding": 1, "flip_sin_to_cos": True}
    write_folder(tmp_path / "unet", **options, freq_shift=0)
    path = tmp_path / "unet" / "config.json"
    given = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {key: value for key, value in given.items() if key not in ("norm_eps", *options)} | {"num_class_embeds": 5}
        )
    )
    config = read_unet2d(tmp_path / "unet").config
    assert config["label_dim"] == 5
    assert {key: config[key] for key in options if key in config} == {k: v for k, v in options.items() if k in config}


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(json.dumps({**SMALL, **changes})) and None


def _scheduler(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "scheduler_config.json").write_text(json.dumps({**DDPM, **changes})) and None


def _text(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _link_to_a_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _first(all_: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: change(each) if index == 0 else each for index, (name, each) in enumerate(all_.items())}


def _executing(folder: Path) -> None:
    content, _ = next(iter(hostile_files.executing(folder / "ran").values()))
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(content)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another class": (_config(_class_name="UNet2DConditionModel"), "UNet2DConditionModel"),
    "no class": (_config(_class_name=None), "UNet2DModel"),
    "an unknown option": (_config(encoder_hid_dim=8), "encoder_hid_dim"),
    "an option with another meaning": (_config(center_input_sample=True), "center_input_sample"),
    "scales and shifts": (_config(resnet_time_scale_shift="scale_shift"), "resnet_time_scale_shift"),
    "another time embedding": (_config(time_embedding_type="fourier"), "time_embedding_type"),
    "other blocks": (_config(down_block_types=["SkipDownBlock2D", "DownBlock2D"]), "down_block_types"),
    "too few blocks": (_config(up_block_types=["UpBlock2D"]), "up_block_types"),
    "no resolution": (_config(sample_size=None), "sample_size"),
    "images that are not square": (_config(sample_size=[16, 8]), "sample_size"),
    "other channels coming out": (_config(out_channels=2), "out_channels"),
    "a text for a number": (_config(layers_per_block="1"), "layers_per_block"),
    "a truth for a number": (_config(layers_per_block=True), "layers_per_block"),
    "an absurd number of layers": (_config(layers_per_block=10**9), "layers_per_block"),
    "an absurd width": (_config(block_out_channels=[10**12, 16]), "block_out_channels"),
    "too many levels": (_config(block_out_channels=[8] * 10_000), "block_out_channels"),
    "widths of nothing": (_config(block_out_channels=[]), "block_out_channels"),
    "a negative number of groups": (_config(norm_num_groups=-4), "norm_num_groups"),
    "another network": (_config(block_out_channels=[8, 32]), "config.json"),
    "no JSON": (_text("config.json", b"{"), "JSON"),
    "a list": (_text("config.json", b"[]"), "mapping"),
    "deep nesting": (_text("config.json", b"[" * 100_000), "config.json"),
    "a huge config": (_text("config.json", b" " * 2_000_000), "config.json"),
    "no text": (_text("config.json", b"\xff\xfe\x00"), "config.json"),
    "NaN": (_text("config.json", json.dumps({**SMALL, "norm_eps": float("nan")}).encode()), "config.json"),
    "a pipe": (_link_to_a_pipe, "config.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "truncated weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8]) and None,
        WEIGHTS,
    ),
    "weights that are a page": (_text(WEIGHTS, b"<html>Not found</html>"), WEIGHTS),
    "a tensor less": (lambda folder: _with(folder, lambda all_: dict(list(all_.items())[1:])), "no tensor"),
    "a tensor more": (lambda folder: _with(folder, lambda all_: {**all_, "extra": torch.ones(1)}), "extra"),
    "another shape": (lambda folder: _with(folder, lambda all_: _first(all_, lambda each: each[:1].clone())), WEIGHTS),
    "two names of one tensor": (
        lambda folder: _with(folder, lambda all_: all_ | {_old_name(n): t.clone() for n, t in all_.items()}),
        "two",
    ),
    "whole numbers": (lambda folder: _with(folder, lambda all_: _first(all_, torch.Tensor.int)), "int32"),
    "an infinity": (lambda folder: _with(folder, lambda all_: _first(all_, lambda each: each / 0)), "finite"),
    "code in a pickle": (_executing, ".bin"),
    "velocities": (_scheduler(prediction_type="v_prediction"), "v_prediction"),
    "another schedule": (_scheduler(beta_schedule="squaredcos_cap_v2"), "beta_schedule"),
    "other variances": (_scheduler(beta_end=0.012), "beta_end"),
    "fewer times": (_scheduler(num_train_timesteps=100), "num_train_timesteps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_of_anything_else_is_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, named = REFUSED[name]
    damage(folder)
    code, target = convert(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert code != 0 and named in line and str(folder) in line and len(line) < 700
    assert not target.exists() and not (folder / "ran").exists()


def test_another_law_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(folder, "--preconditioning", "d2o")[0] != 0
    (tmp_path / "edm.pkl").write_bytes(edm_writer.dump({}))
    assert convert(tmp_path / "edm.pkl", "--preconditioning", "ddpm")[0] != 0
    write_snapshot(tmp_path / "s.safetensors", small_unet2d().state_dict(), network_config(SMALL))
    assert main(["sample", str(folder), str(tmp_path / "x.png")]) != 0
    assert "onestep convert" in capsys.readouterr().err
    assert convert(tmp_path / "s.safetensors", "--preconditioning", "edm")[0] != 0
    assert convert(tmp_path / "s.safetensors", "--preconditioning", "ddpm")[0] == 0
    assert all("--preconditioning" in line for line in capsys.readouterr().err.splitlines())
