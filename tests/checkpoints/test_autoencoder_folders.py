"""Folders of diffusers with an AutoencoderKL: read as published, and refused by name where they are anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from autoencoder_folders import CONFIG, SMALL, WEIGHTS, kl, small_folder
from onestep.autoencoders.kl import KL
from onestep.checkpoints.autoencoder_folder import read_autoencoder
from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.cli import main

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_LAST = "quant_conv.weight"
_ATTENTION = "decoder.mid_block.attentions.0.to_q.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_folder(tmp_path / "vae")


def _convert(folder: Path) -> tuple[int, Path]:
    target = folder.with_name("codec.safetensors")
    return main(["convert", "--source", str(folder), "--output", str(target)]), target


def test_a_folder_becomes_the_weights_of_a_codec(folder: Path) -> None:
    code, target = _convert(folder)
    assert code == 0
    expected, found = load_file(folder / WEIGHTS), read_snapshot(target)
    assert found.state_dict.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict.items())
    card = yaml.safe_load(target.with_suffix(".yaml").read_text())
    assert card["source"] == f"vae/{WEIGHTS}" and card["class_name"] == "AutoencoderKL"
    assert card["network"]["scaling_factor"] == 0.18215 and card["network"]["name"] == "kl"
    one, other = kl(folder, latents="edm2"), KL(weights=target, latents="edm2")
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert one.origin == other.origin and torch.equal(one.moments(pixels), other.moments(pixels))
    before = target.read_bytes()
    assert _convert(folder)[0] == 0 and target.read_bytes() == before


def _with(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def _renamed(name: str) -> str:
    for new, old in OLD.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _in_a_pipeline(folder: Path) -> None:
    (folder / "vae").mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).rename(folder / "vae" / name)


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _as_convolutions(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        _renamed(name): each[:, :, None, None].contiguous() if "attentions" in name and each.ndim == 2 else each
        for name, each in tensors.items()
    }


FORMS: dict[str, Callable[[Path], None]] = {
    "a pipeline": _in_a_pipeline,
    "old names": lambda folder: _with(folder, lambda all_: {_renamed(name): each for name, each in all_.items()}),
    "old names, as convolutions": lambda folder: _with(folder, _as_convolutions),
    "tensors of torch.save": _pickled,
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_same_autoencoder(folder: Path, form: str) -> None:
    expected = load_file(folder / WEIGHTS)
    FORMS[form](folder)
    found = read_autoencoder(folder).state_dict
    assert found.keys() == expected.keys() and all(torch.equal(found[name], each) for name, each in expected.items())


def test_half_precision_is_read_as_single_precision(folder: Path) -> None:
    expected = {name: each.half() for name, each in load_file(folder / WEIGHTS).items()}
    save_file(expected, folder / WEIGHTS)
    found = read_autoencoder(folder).state_dict
    assert all(each.dtype == torch.float32 and torch.equal(each, expected[n].float()) for n, each in found.items())


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / CONFIG).write_text(json.dumps({**SMALL, **changes})) and None


def _changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: _with(folder, lambda all_: {**all_, name: change(all_[name]).contiguous()})


def _cut(folder: Path, share: float) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(share * len(content))])


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another class": (_config(_class_name="AutoencoderTiny"), "_class_name"),
    "no class": (_config(_class_name=None), "_class_name"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "config.json"),
    "a config that is no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "JSON"),
    "a config that is a list": (lambda folder: (folder / CONFIG).write_text("[]"), "list"),
    "an unknown option": (_config(magic=3), "magic"),
    "another activation": (_config(act_fn="relu"), "act_fn"),
    "shifted latents": (_config(shift_factor=0.1), "shift_factor"),
    "latents with statistics": (_config(latents_mean=[0.0] * 4), "latents_mean"),
    "no quantisation layer": (_config(use_quant_conv=False), "use_quant_conv"),
    "a middle without attention": (_config(mid_block_add_attention=False), "mid_block_add_attention"),
    "other blocks": (_config(down_block_types=["AttnDownEncoderBlock2D"] * 2), "down_block_types"),
    "fewer blocks than widths": (_config(up_block_types=["UpDecoderBlock2D"]), "up_block_types"),
    "two channels": (_config(in_channels=2, out_channels=2), "in_channels"),
    "other channels out than in": (_config(out_channels=3), "out_channels"),
    "no latents": (_config(latent_channels=0), "latent_channels"),
    "absurd widths": (_config(block_out_channels=[4, 10**9]), "block_out_channels"),
    "many levels": (_config(block_out_channels=[4] * 60), "block_out_channels"),
    "groups that do not divide": (_config(norm_num_groups=3), "norm_num_groups"),
    "groups of none": (_config(norm_num_groups=0), "norm_num_groups"),
    "absurd depth": (_config(layers_per_block=10**6), "layers_per_block"),
    "a scaling of zero": (_config(scaling_factor=0.0), "scaling_factor"),
    "a scaling as text": (_config(scaling_factor="0.18215"), "scaling_factor"),
    "widths as text": (_config(block_out_channels="4, 8"), "block_out_channels"),
    "wider than the weights": (_config(block_out_channels=[4, 16]), "tensors differ"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "truncated weights": (lambda folder: _cut(folder, 0.5), WEIGHTS),
    "a truncated header": (lambda folder: _cut(folder, 0.001), WEIGHTS),
    "empty weights": (lambda folder: _cut(folder, 0.0), WEIGHTS),
    "a missing tensor": (lambda f: _with(f, lambda all_: {n: t for n, t in all_.items() if n != _LAST}), _LAST),
    "another tensor": (lambda f: _with(f, lambda all_: {**all_, "loss.logvar": torch.zeros(1)}), "loss.logvar"),
    "a wrong shape": (_changed(_LAST, lambda tensor: tensor[:-1]), _LAST),
    "both names of a layer": (
        lambda f: _with(f, lambda all_: {**all_, _renamed(_ATTENTION): all_[_ATTENTION].clone()}),
        _ATTENTION,
    ),
    "whole numbers": (_changed(_LAST, lambda tensor: tensor.to(torch.int32)), _LAST),
    "NaN": (_changed(_LAST, lambda tensor: tensor.fill_(torch.nan)), _LAST),
    "infinity": (_changed(_LAST, lambda tensor: tensor.fill_(torch.inf)), _LAST),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_and_other_folders_are_refused_in_one_line(folder: Path, capsys: Any, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(folder)
    code, target = _convert(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1 and named in line and str(folder) in line
    assert not target.exists() and not target.with_suffix(".yaml").exists()
    with pytest.raises(ValueError):
        kl(folder, latents="edm2")


def test_a_pickle_in_its_place_executes_nothing(folder: Path, tmp_path: Path, capsys: Any) -> None:
    (folder / WEIGHTS).unlink()
    mark = tmp_path / "executed"
    torch.save({_LAST: _Executing(mark)}, folder / "diffusion_pytorch_model.bin")
    code, target = _convert(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1 and str(folder) in line and not mark.exists() and not target.exists()


class _Executing:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_network_of_another_kind_is_no_autoencoder(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"name": "song_unet"})
    with pytest.raises(ValueError, match=r"x\.safetensors: got the network 'song_unet'"):
        KL(weights=tmp_path / "x.safetensors", latents="edm2")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"latents": "edm2", "scaling": 0.2}, "scaling"),
        ({"latents": "stable_diffusion", "means": (0.0,) * 4}, "means"),
        ({"latents": "edm2", "means": (0.0,) * 3}, "means"),
        ({"latents": "edm2", "deviations": (1.0,) * 5}, "deviations"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: .*Fix: "):
        kl(folder, **options)
