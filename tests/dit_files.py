"""Small networks `dit`, those of the recordings, and files with their weights as DiT and SiT publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from onestep.checkpoints.diffusers_dit import diffusers_tensors_of
from onestep.checkpoints.snapshot import Snapshot
from onestep.networks import Preconditioned, build_denoiser
from unet2d_folders import recorded_kwargs

SMALL = {
    "name": "dit",
    "img_resolution": 16,
    "img_channels": 1,
    "label_dim": 0,
    "patch_size": 4,
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
}


def config_of(kwargs: dict[str, Any], *, law: str) -> dict[str, Any]:
    """Return the config of our denoiser of the published constructor's arguments."""
    given = dict(kwargs)
    sizes = {"img_resolution": given.pop("input_size"), "img_channels": given.pop("in_channels")}
    options = {"label_dim": given.pop("num_classes"), "no_class": given.pop("class_dropout_prob", 0.1) > 0}
    return {"name": "dit", **sizes, **options, **given, "preconditioning": law}


def recorded_dit(arrays: dict[str, Any], *, law: str) -> Preconditioned:
    """Return the denoiser of a recording with its weights, in evaluation mode."""
    network = build_denoiser(config_of(recorded_kwargs(arrays), law=law)).eval()
    weights = {f"model.{key[3:]}": torch.from_numpy(value) for key, value in arrays.items() if key[:3] == "sd/"}
    assert list(weights) == list(network.state_dict())
    network.load_state_dict(weights, strict=True)
    return network


def condition_of(classes: Any, denoiser: Preconditioned) -> Tensor:
    """Return one-hot rows of classes, of which the number after the last one is none."""
    rows = torch.eye(denoiser.label_dim + 1)[torch.as_tensor(classes)]
    return rows[:, : denoiser.label_dim]


def small_dit(*, seed: int = 0, law: str = "flow", **changes: Any) -> Preconditioned:
    """Return the denoiser of `SMALL` with random weights, none of them zero."""
    torch.manual_seed(seed)
    network = build_denoiser({**SMALL, **changes, "preconditioning": law}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


PUBLISHED = {**SMALL, "label_dim": 3, "hidden_size": 384, "depth": 1, "num_heads": 6}
"""The width of size S, by which a state dict is known."""


def published_tensors(*, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of `PUBLISHED` as DiT and SiT have it."""
    network = small_dit(seed=seed, **{key: value for key, value in PUBLISHED.items() if key != "name"})
    return {name.removeprefix("model."): tensor.clone() for name, tensor in network.state_dict().items()}


FOLDER = {
    "_class_name": "DiTTransformer2DModel",
    "_diffusers_version": "0.35.1",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 1,
    "out_channels": 2,
    "num_layers": 2,
    "sample_size": 16,
    "patch_size": 4,
    "num_embeds_ada_norm": 3,
    "norm_eps": 1e-5,
}
"""config.json of a small DiT of diffusers."""


def folder_network(*, seed: int = 0) -> Preconditioned:
    """Return the denoiser of `FOLDER` with random weights."""
    return small_dit(seed=seed, law="ddpm", label_dim=3, freq_shift=1, mlp_norm_eps=1e-5)


def write_dit_folder(folder: Path, *, seed: int = 0, **changes: Any) -> Preconditioned:
    """Write `FOLDER` as `save_pretrained` does; return its denoiser."""
    network = folder_network(seed=seed)
    options = {"label_dim": 3, "learn_sigma": True, "preconditioning": "ddpm"}
    snapshot = Snapshot(config={**SMALL, **options}, state_dict=dict(network.state_dict()), note={})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**FOLDER, **changes}))
    tensors = {name: tensor.contiguous().clone() for name, tensor in diffusers_tensors_of(snapshot).items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return network
