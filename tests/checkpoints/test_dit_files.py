"""State dicts of DiT and SiT, and folders of diffusers with a DiT: read as published, refused where they are not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dit_files import FOLDER, PUBLISHED, SMALL, published_tensors, write_dit_folder
from onestep.checkpoints.denoiser_folder import denoiser_config, read_denoiser_folder
from onestep.checkpoints.snapshot import write_snapshot
from onestep.cli import main
from onestep.networks import build_denoiser, load_denoiser, published_architecture

WEIGHTS = "diffusion_pytorch_model.safetensors"
LAST = "final_layer.adaLN_modulation.1.bias"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return published_tensors()


def convert(source: Path, *options: str) -> tuple[int, Path]:
    target = source.parent / "teacher.safetensors"
    return main(["convert", "--source", str(source), "--output", str(target), *options]), target


def _checkpoint(tensors: Tensors) -> dict[str, Any]:
    """Return what the training scripts save, with other weights beside the average."""
    options = argparse.Namespace(model="DiT-S/4", results_dir="results", global_batch_size=256, ckpt=None)
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
    return {"model": {name: 2 * each for name, each in tensors.items()}, "ema": tensors} | {
        "opt": optimizer,
        "args": options,
    }


FORMS: dict[str, Callable[[Path, Tensors], Path]] = {
    "tensors.pt": lambda path, all_: torch.save(all_, path) or path,
    "checkpoint.pt": lambda path, all_: torch.save(_checkpoint(all_), path) or path,
    "tensors.safetensors": lambda path, all_: save_file(all_, path) or path,
    "half.pth": lambda path, all_: torch.save({name: each.half() for name, each in all_.items()}, path) or path,
}


@pytest.mark.parametrize(("form", "law"), [(form, "flow") for form in FORMS] + [("tensors.pt", "ddpm")])
def test_a_state_dict_becomes_a_teacher(tensors: Tensors, tmp_path: Path, form: str, law: str) -> None:
    source = FORMS[form](tmp_path / form, tensors)
    code, target = convert(source, "--preconditioning", law)
    assert code == 0
    network = load_denoiser(target)
    assert network.preconditioning == law and network.label_dim == 3
    for name, tensor in network.state_dict().items():
        expected = tensors[name.removeprefix("model.")]
        assert tensor.dtype == torch.float32 and torch.equal(
            tensor, expected.half().float() if "half" in form else expected
        )
    card = yaml.safe_load(target.with_suffix(".yaml").read_text())
    assert {**PUBLISHED, "learn_sigma": True, "preconditioning": law} == card["network"]
    assert card["class_name"] == {"flow": "SiT", "ddpm": "DiT"}[law] and card["source"] == form


@pytest.mark.parametrize("form", ["state dict", "folder", "snapshot"])
def test_a_network_with_classes_becomes_the_one_for_no_class(tensors: Tensors, tmp_path: Path, form: str) -> None:
    if form == "folder":
        write_dit_folder(tmp_path / "dit")
        source, options = tmp_path / "dit", ()
    else:
        source, options = FORMS["tensors.pt"](tmp_path / "tensors.pt", tensors), ("--preconditioning", "flow")
    code, whole = convert(source, *options)
    assert code == 0
    if form == "snapshot":
        source, options = whole.rename(tmp_path / "snapshot.safetensors"), ()
        whole = source
    else:
        whole = whole.rename(tmp_path / "whole.safetensors")
    code, target = convert(source, *options, "--without-classes")
    assert code == 0
    given, found = load_denoiser(whole), load_denoiser(target)
    assert (given.label_dim, found.label_dim) == (3, 0) and found.preconditioning == given.preconditioning
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = given(x, torch.full((2,), 2.5), torch.zeros(2, 3)).detach()
    torch.testing.assert_close(found(x, torch.full((2,), 2.5)).detach(), expected, rtol=0, atol=1e-5)
    with_class = given(x, torch.full((2,), 2.5), torch.eye(3)[:2]).detach()
    assert (with_class - expected).abs().max() > 1e-3  # else the test above would show nothing
    assert yaml.safe_load(target.with_suffix(".yaml").read_text())["without_classes"] == 3
    # There are none to leave out any more, and no row for them.
    code, _ = convert(target.rename(tmp_path / "again.safetensors"), "--without-classes")
    assert code != 0


def _other_snapshot(path: Path, config: dict[str, Any]) -> Path:
    network = build_denoiser({**config, "preconditioning": "edm"})
    write_snapshot(path, network.state_dict(), {**config, "preconditioning": "edm"})
    return path


def test_no_class_is_refused_of_networks_that_never_saw_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unet = {"name": "song_unet", "img_resolution": 8, "img_channels": 1, "label_dim": 3, "model_channels": 16}
    dit = {**SMALL, "label_dim": 3, "no_class": False}
    (tmp_path / "edm.pkl").write_bytes(b"")
    for source in (
        _other_snapshot(tmp_path / "unet.safetensors", unet),
        _other_snapshot(tmp_path / "dit.safetensors", dit),
        tmp_path / "edm.pkl",
    ):
        code, target = convert(source, "--without-classes")
        message = capsys.readouterr().err.strip()
        assert code != 0 and not target.exists() and "\n" not in message and str(source) in message


def _without(tensors: Tensors, part: str) -> Tensors:
    return {name: each for name, each in tensors.items() if part not in name}


def _narrow(tensors: Tensors) -> Tensors:
    return tensors | {"x_embedder.proj.weight": tensors["x_embedder.proj.weight"][:380].clone()}


REFUSED: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "nothing": (lambda all_: {}, "tensors by name"),
    "a list": (lambda all_: list(all_.values()), "tensors by name"),
    "one tensor": (lambda all_: all_["pos_embed"], "tensors by name"),
    "numbers among tensors": (lambda all_: {**all_, "step": 3}, "tensors by name"),
    "another network": (lambda all_: {"conv.weight": torch.ones(3, 3)}, "x_embedder.proj.weight"),
    "no positions": (lambda all_: _without(all_, "pos_embed"), "pos_embed"),
    "positions of no square": (lambda all_: all_ | {"pos_embed": all_["pos_embed"][:, :15].clone()}, "square"),
    "an unknown width": (_narrow, "384, 768, 1024, 1152"),
    "no classes": (lambda all_: all_ | {"y_embedder.embedding_table.weight": torch.ones(1, 384)}, "1 rows"),
    "no blocks": (lambda all_: _without(all_, "blocks."), "0 blocks"),
    "a gap among the blocks": (
        lambda all_: {name.replace("blocks.0", "blocks.7"): each for name, each in all_.items()},
        "blocks.0",
    ),
    "absurdly many blocks": (
        lambda all_: all_ | {f"blocks.{index}.attn.qkv.weight": torch.ones(1) for index in range(300)},
        "300 blocks",
    ),
    "a tensor less": (lambda all_: _without(all_, "fc2.bias"), "no tensor"),
    "a tensor more": (lambda all_: {**all_, "extra": torch.ones(1)}, "extra"),
    "another shape": (lambda all_: all_ | {"blocks.0.mlp.fc1.bias": torch.ones(3)}, "fc1.bias"),
    "other outputs": (lambda all_: all_ | {"final_layer.linear.weight": torch.ones(48, 384)}, "48 rows"),
    "whole numbers": (
        lambda all_: {n: each.int() if n.endswith("fc2.bias") else each for n, each in all_.items()},
        "int32",
    ),
    "an infinity": (
        lambda all_: {n: each / 0 if n.endswith("fc2.bias") else each for n, each in all_.items()},
        "finite",
    ),
    "a class of another name": (lambda all_: {"ema": all_, "args": Path("x")}, "tensors alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_anything_else_is_refused(
    tensors: Tensors, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, named = REFUSED[name]
    torch.save(damage(dict(tensors)), tmp_path / "dit.pt")
    code, target = convert(tmp_path / "dit.pt", "--preconditioning", "ddpm")
    (line,) = capsys.readouterr().err.splitlines()
    assert code != 0 and named in line and str(tmp_path) in line and len(line) < 700
    assert not target.exists() and not target.with_suffix(".yaml").exists()


def test_damaged_files_and_code_are_refused(
    tensors: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tensors, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    contents = {
        "truncated": whole[:-1000],
        "page": b"<html>Not found</html>",
        "nothing": b"",
        **{f"code {index}": each for index, (each, _) in enumerate(hostile_files.executing(tmp_path / "ran").values())},
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        code, target = convert(path, "--preconditioning", "flow")
        (line,) = capsys.readouterr().err.splitlines()
        assert code != 0 and str(path) in line, name
        assert not target.exists() and not (tmp_path / "ran").exists(), name


@pytest.mark.parametrize("options", [(), ("--preconditioning", "edm"), ("--preconditioning", "d2o")])
def test_the_law_of_a_state_dict_has_to_be_stated(
    tensors: Tensors, tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tensors, tmp_path / "dit.pt")
    code, target = convert(tmp_path / "dit.pt", *options)
    (line,) = capsys.readouterr().err.splitlines()
    assert code != 0 and "ddpm (of DiT) or flow (of SiT)" in line and not target.exists()


def test_published_names_have_their_architecture() -> None:
    sit, large = published_architecture("sit-xl-2-256x256"), published_architecture("dit-xl-2-512x512")
    assert (sit["preconditioning"], large["preconditioning"]) == ("flow", "ddpm")
    assert (sit["img_resolution"], large["img_resolution"]) == (32, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dit_folder(tmp_path / "dit")
    return tmp_path / "dit"


def test_a_folder_becomes_a_teacher(folder: Path) -> None:
    code, target = convert(folder)
    assert code == 0
    network, expected = load_denoiser(target), write_dit_folder(folder.with_name("again"))
    assert network.preconditioning == "ddpm" and (network.img_resolution, network.label_dim) == (16, 3)
    assert all(torch.equal(each, expected.state_dict()[name]) for name, each in network.state_dict().items())
    x, level = torch.randn(2, 1, 16, 16), torch.tensor([2.5, 80.0])
    assert torch.equal(network(x, level), expected(x, level).detach())
    card = yaml.safe_load(target.with_suffix(".yaml").read_text())
    assert card["source"] == f"dit/{WEIGHTS}" and card["class_name"] == "DiTTransformer2DModel"


def _in_a_pipeline(folder: Path) -> None:
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "linear"}))
    (folder / "transformer").mkdir()
    for name in ("config.json", WEIGHTS):
        (folder / name).rename(folder / "transformer" / name)


def _by_the_former_name(folder: Path) -> None:
    stated = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_type": "ada_norm_zero"}
    stated |= {"norm_elementwise_affine": False, "cross_attention_dim": None, "only_cross_attention": False}
    changed = {**FOLDER, **stated, "_class_name": "Transformer2DModel", "norm_num_groups": 32}
    (folder / "config.json").write_text(json.dumps(changed))


@pytest.mark.parametrize("form", [_in_a_pipeline, _by_the_former_name])
def test_forms_of_the_same_folder(folder: Path, form: Callable[[Path], None]) -> None:
    expected = read_denoiser_folder(folder)
    form(folder)
    found = read_denoiser_folder(folder)
    assert found.config == expected.config == denoiser_config(folder)
    assert all(torch.equal(found.state_dict[name], each) for name, each in expected.state_dict.items())


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(json.dumps({**FOLDER, **changes})) and None


def _with(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def _of_the_second_block(tensors: Tensors) -> Tensors:
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    return tensors | {name: tensors[name] + 1}


def _an_infinity(tensors: Tensors) -> Tensors:
    return tensors | {"proj_out_2.bias": tensors["proj_out_2.bias"] / 0}


REFUSED_FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another transformer": (
        lambda folder: (
            _in_a_pipeline(folder)
            or (folder / "transformer" / "config.json").write_text('{"_class_name": "SD3Transformer2DModel"}')
            and None
        ),
        "SD3Transformer2DModel",
    ),
    "a text condition": (_config(_class_name="Transformer2DModel"), "activation_fn"),
    "another activation": (_config(activation_fn="geglu"), "activation_fn"),
    "no biases": (_config(attention_bias=False), "attention_bias"),
    "other norms": (_config(norm_type="ada_norm_single"), "norm_type"),
    "an unknown option": (_config(encoder_hid_dim=8), "encoder_hid_dim"),
    "a text for a number": (_config(num_layers="2"), "num_layers"),
    "a truth for a number": (_config(num_layers=True), "num_layers"),
    "an absurd number of layers": (_config(num_layers=10**9), "num_layers"),
    "an absurd width": (_config(attention_head_dim=8_192), "attention_head_dim"),
    "a width of no table": (_config(attention_head_dim=3), "attention_head_dim"),
    "half a patch": (_config(sample_size=18), "sample_size"),
    "other channels coming out": (_config(out_channels=3), "out_channels"),
    "no epsilon": (_config(norm_eps=0.0), "norm_eps"),
    "another depth": (_config(num_layers=3), "config.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "truncated weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8]) and None,
        WEIGHTS,
    ),
    "a tensor less": (_with(lambda all_: dict(list(all_.items())[1:])), "no tensor"),
    "a tensor more": (_with(lambda all_: {**all_, "extra": torch.ones(1)}), "extra"),
    "an infinity": (_with(_an_infinity), "finite"),
    "blocks with classes of their own": (_with(_of_the_second_block), "all blocks"),
    "velocities": (
        lambda folder: (folder / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}') and None,
        "v_prediction",
    ),
}


@pytest.mark.parametrize("name", REFUSED_FOLDERS)
def test_a_folder_of_anything_else_is_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, named = REFUSED_FOLDERS[name]
    damage(folder)
    code, target = convert(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert code != 0 and named in line and str(folder) in line and len(line) < 700
    assert not target.exists()


def test_diffusers_writes_what_is_read(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    options = {key: value for key, value in FOLDER.items() if key[:1] != "_"}
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(**options).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    first = theirs.transformer_blocks[0].norm1.emb.state_dict()
    theirs.transformer_blocks[1].norm1.emb.load_state_dict(first)
    theirs.save_pretrained(tmp_path / "dit")
    assert convert(tmp_path / "dit")[0] == 0
    ours = load_denoiser(tmp_path / "teacher.safetensors")
    x, times, classes = torch.randn(4, 1, 16, 16), torch.tensor([999.0, 500.25, 1.0, 0.0]), torch.arange(4)
    with torch.no_grad():
        wanted = theirs(x, timestep=times, class_labels=classes).sample[:, :1]
        assert torch.allclose(ours.model(x, times, torch.eye(4)[classes][:, :3]), wanted, atol=2e-5)
