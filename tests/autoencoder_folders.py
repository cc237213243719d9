"""Folders of diffusers with a small AutoencoderKL of random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from onestep.autoencoders.kl import KL
from onestep.checkpoints.autoencoder_folder import autoencoder_config, autoencoder_shapes

SMALL = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.35.1",
    "act_fn": "silu",
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 1,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "out_channels": 1,
    "sample_size": 16,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def folder_of(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    """Write weights and a config as `AutoencoderKL.save_pretrained` does; return the folder."""
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps({"_class_name": "AutoencoderKL", **config}))
    if weights:
        save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def small_weights(config: Mapping[str, Any], *, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights by name, of which images and latents are of about the size of data."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in autoencoder_shapes(config):
        is_scale = len(shape) == 1 and name.endswith("weight")
        fan = shape[1:].numel() if isinstance(shape, torch.Size) else max(1, int(torch.tensor(shape[1:]).prod()))
        found[name] = torch.ones(shape) if is_scale else torch.randn(shape, generator=generator) / fan**0.5
    return found


def small_folder(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a small autoencoder with random weights."""
    config = {**SMALL, **changes}
    folder_of(folder, {}, config)
    save_file(small_weights(autoencoder_config(folder / CONFIG), seed=seed), folder / WEIGHTS)
    return folder


def kl(folder: Path, **options: Any) -> KL:
    """Return the codec of a folder."""
    return KL(weights=folder, **options)


CODEC = {
    "name": "kl",
    "input": "vae",
    "latents": "edm2",
    "means": [0.0, 0.5, -0.5, 0.0],
    "deviations": [0.5, 1.0, 1.0, 2.0],
    "rows": 3,
}
"""A codec of `small_folder`, whose parts of rows do not divide a batch."""


def latent_config(config: dict[str, Any], *, folder: Path, codec: Mapping[str, Any] = CODEC) -> dict[str, Any]:
    """Change the tiny config: its runs of a denoiser train on latents of the digits, 4 x 8 x 8."""
    config["inputs"]["vae"] = {"file": str(folder)}
    config["datasets"]["latents"] = {"name": "encoded", "dataset": "digits", "codec": dict(codec)}
    for run in config["runs"].values():
        if "classifier" not in run:
            run["dataset"] = "latents"
        if "network" in run:
            run["network"]["attn_resolutions"] = [4]
    return config
