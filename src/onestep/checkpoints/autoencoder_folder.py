"""Folders of diffusers with an AutoencoderKL, read without the package: config.json and weights.

What is not read as diffusers would build it is refused by name, and a file whose tensors are not those of config.json
is refused before a network is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from onestep.checkpoints._diffusers import (
    Shapes,
    attention_shapes,
    layer_shapes,
    read_config,
    read_options,
    residual_shapes,
    with_current_names,
)
from onestep.checkpoints.diffusers_folder import CONFIG, WEIGHTS
from onestep.checkpoints.digests import known_digest
from onestep.checkpoints.published_weights import read_published_weights
from onestep.checkpoints.snapshot import Snapshot
from onestep.folders import named_folder

CLASS = "AutoencoderKL"
CODEC = "kl"
"""The choice of autoencoders/ that it is."""

_PICKLED = "diffusion_pytorch_model.bin"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
_WIDTHS, _LAYERS, _LEVELS, _LATENTS = range(4, 4_097), range(1, 17), range(1, 9), range(1, 65)

# Keys of config.json that are those of our config, with the defaults and the types of diffusers 0.35.
_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "in_channels": (3, int),
    "latent_channels": (4, int),
    "block_out_channels": ([64], [int]),
    "layers_per_block": (1, int),
    "norm_num_groups": (32, int),
    "scaling_factor": (0.18215, float),
}
# Those that change nothing here: images of any size pass, in float32; of the types of blocks one is read.
_OTHERS = {
    "out_channels?": int,
    "down_block_types?": [str],
    "up_block_types?": [str],
    "sample_size?": (int, [int], None),
    "force_upcast?": (bool, float, None),
}
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
}


def read_autoencoder(folder: Path) -> Snapshot:
    """Read a folder of `AutoencoderKL.save_pretrained`, or of a pipeline with one as `vae`; or a `.folder` file of it.

    The tensors are float32, with the names of diffusers; attention with the names of before diffusers 0.13 is read as
    well. Another class or option, damaged or missing files, numbers that are not finite, and tensors that are not those
    of the config are a ValueError. Of a .bin file nothing is executed.
    """
    folder = named_folder(folder)
    place = place_of(folder) or folder
    if not (place / CONFIG).exists():
        raise ValueError(f"{folder}: got a folder without {CONFIG}, expected that of an {CLASS} of diffusers")
    config = autoencoder_config(place / CONFIG)
    weights = place / (WEIGHTS if (place / WEIGHTS).exists() or not (place / _PICKLED).exists() else _PICKLED)
    shapes = dict(autoencoder_shapes(config))
    found = with_current_names(weights, read_published_weights(weights), shapes=shapes)
    tensors = {name: found[name].to(torch.float32) for name in shapes}
    note = {"source": f"{folder.name}/{weights.relative_to(folder)}", "class_name": CLASS}
    return Snapshot(config=config, state_dict=tensors, note={**note, "sha256": known_digest(weights)})


def place_of(folder: Path) -> Path | None:
    """Return the folder of the autoencoder: the folder itself, or that in a pipeline's; None if neither holds one."""
    places = (each for each in (folder, folder / "vae") if (each / CONFIG).exists())
    return next((each for each in places if _class_in(each / CONFIG) == CLASS), None)


def _class_in(path: Path) -> Any:
    try:
        return read_config(path).get("_class_name")
    except ValueError:  # refused by the reader of another class
        return None


def autoencoder_config(path: Path) -> dict[str, Any]:
    """Return the config of an autoencoder from a config.json; ValueError as in `read_autoencoder`."""
    options, given = read_options(path, kind=CLASS, options=_OPTIONS, fixed=_FIXED, others=_OTHERS, of=CODEC)
    if found := _out_of_range(options, given):
        raise ValueError(f"{path}: {found}. Fix: choose another network")
    return {"name": CODEC, **options}


def _out_of_range(options: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the numbers of a config, None if nothing: no network of absurd size is built."""
    widths, groups, channels = options["block_out_channels"], options["norm_num_groups"], options["in_channels"]
    levels = len(widths)
    down, up = given.get("down_block_types", [_DOWN]), given.get("up_block_types", [_UP])
    checks: dict[str, tuple[Any, bool, str]] = {
        "in_channels": (channels, channels in (1, 3), "1 or 3"),
        "out_channels": (given.get("out_channels", 3), given.get("out_channels", 3) == channels, "those of the input"),
        "latent_channels": (options["latent_channels"], options["latent_channels"] in _LATENTS, "1 to 64"),
        "block_out_channels": (widths, levels in _LEVELS and all(w in _WIDTHS for w in widths), "1 to 8 widths"),
        "layers_per_block": (options["layers_per_block"], options["layers_per_block"] in _LAYERS, "1 to 16"),
        "norm_num_groups": (groups, groups > 0 and not any(w % groups for w in widths), "a divisor of all widths"),
        "scaling_factor": (options["scaling_factor"], 0 < options["scaling_factor"] < 1e3, "a number above 0"),
        "down_block_types": (down, down == [_DOWN] * levels, f"{_DOWN} for each of block_out_channels"),
        "up_block_types": (up, up == [_UP] * levels, f"{_UP} for each of block_out_channels"),
    }
    for key, (value, is_right, expected) in checks.items():
        if not is_right:
            return f"{key}: got {str(value)[:80]}, expected {expected}"
    return None


def autoencoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Yield name and shape of each tensor of an AutoencoderKL from its config as `read_autoencoder` returns it."""
    channels, latents = config["in_channels"], config["latent_channels"]
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    finest, coarsest, last = widths[0], widths[-1], len(widths) - 1
    yield from layer_shapes("encoder.conv_in", finest, channels, 3, 3)
    for level, (before, width) in enumerate(pairwise((finest, *widths))):
        here = f"encoder.down_blocks.{level}"
        for index in range(layers):
            yield from residual_shapes(f"{here}.resnets.{index}", width if index else before, width)
        if level < last:
            yield from layer_shapes(f"{here}.downsamplers.0.conv", width, width, 3, 3)
    yield from _middle("encoder.mid_block", coarsest)
    yield from layer_shapes("encoder.conv_norm_out", coarsest)
    yield from layer_shapes("encoder.conv_out", 2 * latents, coarsest, 3, 3)
    yield from layer_shapes("decoder.conv_in", coarsest, latents, 3, 3)
    for level, (before, width) in enumerate(pairwise((coarsest, *widths[::-1]))):
        here = f"decoder.up_blocks.{level}"
        for index in range(layers + 1):
            yield from residual_shapes(f"{here}.resnets.{index}", width if index else before, width)
        if level < last:
            yield from layer_shapes(f"{here}.upsamplers.0.conv", width, width, 3, 3)
    yield from _middle("decoder.mid_block", coarsest)
    yield from layer_shapes("decoder.conv_norm_out", finest)
    yield from layer_shapes("decoder.conv_out", channels, finest, 3, 3)
    yield from layer_shapes("quant_conv", 2 * latents, 2 * latents, 1, 1)
    yield from layer_shapes("post_quant_conv", latents, latents, 1, 1)


def _middle(name: str, width: int) -> Shapes:
    yield from attention_shapes(f"{name}.attentions.0", width)
    for index in range(2):
        yield from residual_shapes(f"{name}.resnets.{index}", width, width)
