"""Folders of diffusers with a UNet2DModel, read without the package: config.json, weights, the scheduler's config.

What is not read as diffusers would build it is refused by name. The table of tensors follows from config.json alone, so
a file with others is refused before a network is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from onestep.checkpoints._diffusers import (
    Shapes,
    attention_shapes,
    check_values,
    layer_shapes,
    read_config,
    read_options,
    residual_shapes,
    with_current_names,
)
from onestep.checkpoints.digests import known_digest
from onestep.checkpoints.published_weights import read_published_weights
from onestep.checkpoints.snapshot import Snapshot

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASS = "UNet2DModel"
PREFIX = "model."
"""Of the names of a network's tensors in a denoiser; the folder's names are those behind it."""

_PICKLED = "diffusion_pytorch_model.bin"
_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
_WIDTHS, _LAYERS, _LEVELS = range(4, 8_193), range(1, 65), range(1, 13)

# Keys of config.json that are options of networks/unet2d.py, with the defaults and the types of diffusers 0.35.
_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "block_out_channels": ([224, 448, 672, 896], [int]),
    "layers_per_block": (2, int),
    "down_block_types": ([_DOWN[0], *[_DOWN[1]] * 3], [str]),
    "up_block_types": ([*[_UP[1]] * 3, _UP[0]], [str]),
    "norm_num_groups": (32, int),
    "norm_eps": (1e-5, float),
    "attention_head_dim": (8, (int, None)),
    "downsample_padding": (1, int),
    "flip_sin_to_cos": (True, bool),
    "freq_shift": (0, int),
    "dropout": (0.0, float),
}
_SIZES = {
    "sample_size?": (int, [int], None),
    "in_channels?": int,
    "out_channels?": int,
    "num_class_embeds?": (int, None),
}
# Keys that change the network, with the values that are read, the default of diffusers first.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1, None),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "attn_norm_num_groups": (None,),
    "resnet_time_scale_shift": ("default",),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "num_train_timesteps": (None, 1000),
}
# Of the scheduler: those that make the process that of DDPM (arXiv:2006.11239, section 4).
_PROCESS: Mapping[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon",),
    "num_train_timesteps": (1000,),
    "beta_schedule": ("linear",),
    "beta_start": (0.0001,),
    "beta_end": (0.02,),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False, None),
}


def read_unet2d(folder: Path) -> Snapshot:
    """Read a folder of `UNet2DModel.save_pretrained`, or of a pipeline with one, as a denoiser of law `ddpm`.

    The tensors are float32, with the names of networks/unet2d.py. Attention with the names of before diffusers 0.13 is
    read as well, and weights in a .bin file, of which nothing is executed. Another class, an option that
    networks/unet2d.py lacks, another process than DDPM's, damaged or missing files, numbers that are not finite, and
    tensors that are not those of the config are a ValueError.
    """
    place = _place(folder)
    config = _config(place / CONFIG)
    check_scheduler(place)
    weights = weights_in(place)
    shapes = dict(tensor_shapes(config))
    found = with_current_names(weights, read_published_weights(weights), shapes=shapes)
    tensors = {f"{PREFIX}{name}": found[name].to(torch.float32) for name in shapes}
    note = {"source": f"{folder.name}/{weights.relative_to(folder)}", "class_name": CLASS}
    return Snapshot(config=config, state_dict=tensors, note={**note, "sha256": known_digest(weights)})


def check_scheduler(place: Path) -> None:
    """Refuse a scheduler of another process than DDPM's, beside a network in the folder `place` or in its pipeline."""
    for path in (place / SCHEDULER, place / "scheduler" / SCHEDULER, place.parent / "scheduler" / SCHEDULER):
        if path.exists():
            check_values(path, read_config(path), _PROCESS, expected="the process of DDPM")
            break


def weights_in(place: Path) -> Path:
    """Return the file of the weights in a folder, the one of tensors alone where there are two."""
    return place / (WEIGHTS if (place / WEIGHTS).exists() or not (place / _PICKLED).exists() else _PICKLED)


def read_unet2d_config(folder: Path) -> dict[str, Any]:
    """Return the config of the denoiser in a folder, without its weights; ValueError as in `read_unet2d`."""
    return _config(_place(folder) / CONFIG)


def folder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a network from its config as in a snapshot, the inverse of what is read."""
    channels = config["img_channels"]
    options = {key: config.get(key, default) for key, (default, _) in _OPTIONS.items()}
    sizes = {"sample_size": config["img_resolution"], "in_channels": channels, "out_channels": channels}
    classes = {"num_class_embeds": config["label_dim"]} if config.get("label_dim") else {}
    return {"_class_name": CLASS, **sizes, **options, **classes, "act_fn": "silu"}


def scheduler_config() -> dict[str, Any]:
    """Return the config of the scheduler of DDPM, as of diffusers' DDPMScheduler."""
    stated = {key: values[0] for key, values in _PROCESS.items() if values[0] not in (None, False)}
    return {"_class_name": "DDPMScheduler", **stated, "variance_type": "fixed_large", "clip_sample": True}


def _place(folder: Path) -> Path:
    """Return the folder of the network: the folder itself, or that in a pipeline's."""
    place = next((each for each in (folder, folder / "unet") if (each / CONFIG).exists()), None)
    if place is None:
        raise ValueError(f"{folder}: got a folder without {CONFIG}, expected that of a {CLASS} of diffusers")
    return place


def _config(path: Path) -> dict[str, Any]:
    """Return the config of a denoiser from a config.json."""
    options, given = read_options(path, kind=CLASS, options=_OPTIONS, fixed=_FIXED, others=_SIZES, of="unet2d")
    size = given.get("sample_size")
    if isinstance(size, list):
        size = size[0] if len(size) == 2 and size[0] == size[1] else None
    channels, classes = given.get("in_channels", 3), given.get("num_class_embeds") or 0
    found = _out_of_range(options, size=size, channels=channels, classes=classes)
    if found is None and given.get("out_channels", 3) != channels:
        found = f"out_channels: got {given.get('out_channels', 3)}, expected {channels}, those of the input"
    if found is not None:
        raise ValueError(f"{path}: {found}. Fix: choose another network")
    sizes = {"img_resolution": size, "img_channels": channels, "label_dim": classes}
    return {"name": "unet2d", **sizes, **options, "preconditioning": "ddpm"}


def _out_of_range(options: Mapping[str, Any], *, size: Any, channels: int, classes: int) -> str | None:
    """Return what is wrong with the numbers of a config, None if nothing: no network of absurd size is built."""
    widths, head = options["block_out_channels"], options["attention_head_dim"]
    checks: dict[str, tuple[Any, bool, str]] = {
        "sample_size": (size, type(size) is int and 1 <= size <= 8_192, "the resolution of square images"),
        "in_channels": (channels, 1 <= channels <= 64, "1 to 64"),
        "num_class_embeds": (classes, 0 <= classes <= 1_000_000, "a number of classes"),
        "block_out_channels": (widths, len(widths) in _LEVELS and all(w in _WIDTHS for w in widths), "1 to 12 widths"),
        "layers_per_block": (options["layers_per_block"], options["layers_per_block"] in _LAYERS, "1 to 64"),
        "norm_eps": (options["norm_eps"], 0 < options["norm_eps"] < 1, "a small number above 0"),
        "attention_head_dim": (head, head is None or head > 0, "a number above 0, or null"),
        "norm_num_groups": (options["norm_num_groups"], options["norm_num_groups"] > 0, "a number above 0"),
        "downsample_padding": (options["downsample_padding"], options["downsample_padding"] in (0, 1), "0 or 1"),
        "freq_shift": (options["freq_shift"], options["freq_shift"] in (0, 1), "0 or 1"),
        "dropout": (options["dropout"], 0 <= options["dropout"] < 1, "a probability below 1"),
    }
    for key, names in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        given = options[key]
        right = len(given) == len(widths) and all(each in names for each in given)
        checks[key] = (given, right, f"{' or '.join(names)} for each of block_out_channels")
    for key, (value, is_right, expected) in checks.items():
        if not is_right:
            return f"{key}: got {str(value)[:80]}, expected {expected}"
    return None


def tensor_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each tensor of a UNet2DModel from its config as in a snapshot."""
    widths, layers, channels = config["block_out_channels"], config["layers_per_block"], config["img_channels"]
    first, last, emb = widths[0], len(widths) - 1, 4 * widths[0]
    yield from layer_shapes("conv_in", first, channels, 3, 3)
    yield from layer_shapes("time_embedding.linear_1", emb, first)
    yield from layer_shapes("time_embedding.linear_2", emb, emb)
    if config.get("label_dim"):
        yield "class_embedding.weight", (config["label_dim"], emb)
    kept = [first]
    for level, (above, width) in enumerate(pairwise((first, *widths))):
        inputs, here = [above, *[width] * (layers - 1)], f"down_blocks.{level}"
        yield from _level(here, inputs, width, emb=emb, attends=config["down_block_types"][level] == _DOWN[1])
        if level < last:
            yield from layer_shapes(f"{here}.downsamplers.0.conv", width, width, 3, 3)
        kept += [width] * (layers + (level < last))
    below = widths[-1]
    for level, width in enumerate(reversed(widths)):
        inputs = [(width if index else below) + kept.pop() for index in range(layers + 1)]
        here, below = f"up_blocks.{level}", width
        yield from _level(here, inputs, width, emb=emb, attends=config["up_block_types"][level] == _UP[1])
        if level < last:
            yield from layer_shapes(f"{here}.upsamplers.0.conv", width, width, 3, 3)
    yield from attention_shapes("mid_block.attentions.0", widths[-1])
    for index in range(2):
        yield from residual_shapes(f"mid_block.resnets.{index}", widths[-1], widths[-1], emb=emb)
    yield from layer_shapes("conv_norm_out", first)
    yield from layer_shapes("conv_out", channels, first, 3, 3)


def _level(name: str, inputs: list[int], width: int, *, emb: int, attends: bool) -> Shapes:
    for index in range(len(inputs)) if attends else ():
        yield from attention_shapes(f"{name}.attentions.{index}", width)
    for index, channels in enumerate(inputs):
        yield from residual_shapes(f"{name}.resnets.{index}", channels, width, emb=emb)
