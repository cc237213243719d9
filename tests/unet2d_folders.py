"""Folders of diffusers with a small UNet2DModel, and the recordings of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from onestep.networks import Preconditioned, build_denoiser

SMALL = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.35.1",
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "num_class_embeds": None,
}
_ELSEWHERE = ("sample_size", "in_channels", "out_channels", "num_class_embeds", "act_fn")


def network_config(folder_config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of our denoiser of a UNet2DModel's arguments that names all which it departs in."""
    options = {key: value for key, value in folder_config.items() if key not in _ELSEWHERE and key[:1] != "_"}
    sizes = {"img_resolution": folder_config["sample_size"], "img_channels": folder_config["in_channels"]}
    classes = folder_config.get("num_class_embeds") or 0
    return {"name": "unet2d", **sizes, "label_dim": classes, **options, "preconditioning": "ddpm"}


def small_unet2d(*, seed: int = 0, **changes: Any) -> Preconditioned:
    """Return the denoiser of `SMALL` with random weights."""
    torch.manual_seed(seed)
    return build_denoiser(network_config({**SMALL, **changes})).eval()


def write_folder(folder: Path, *, seed: int = 0, **changes: Any) -> Preconditioned:
    """Write `SMALL` as `UNet2DModel.save_pretrained` does; return its denoiser."""
    network = small_unet2d(seed=seed, **changes)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**SMALL, **changes}))
    tensors = {name.removeprefix("model."): tensor for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return network


def networks_of(golden: Any) -> Any:
    """Return the recordings of networks beside others; skip the test where there are none."""
    folder = golden.folder / "networks"
    if not (folder / "manifest.json").exists():
        pytest.skip(f"{folder}: no recordings of networks")
    return type(golden)(folder)


def recorded_kwargs(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a recorded network."""
    return json.loads(str(arrays["kwargs"]))
