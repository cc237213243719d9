"""Folders of diffusers with a DiT (DiTTransformer2DModel, before 0.29 Transformer2DModel), read without the package.

What is not read as diffusers would run it is refused by name. Two things that it runs otherwise than the published
code are options of networks/dit.py: 127 and not 128 divides the exponents of the time's frequencies, and the
normalisation before a block's second half has an epsilon of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep.checkpoints._diffusers import check_values, read_config
from onestep.checkpoints.diffusers_folder import CONFIG, check_scheduler, weights_in
from onestep.checkpoints.digests import known_digest
from onestep.checkpoints.dit_weights import PREFIX, checked_tensors, position_table, tensor_shapes
from onestep.checkpoints.published_weights import read_published_weights
from onestep.checkpoints.snapshot import Snapshot
from onestep.shapes import misfit

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
"""Names of the class in config.json, the present one first."""

# Keys of config.json that are numbers, with the defaults and the types of diffusers 0.35, and the largest of them.
_NUMBERS: Mapping[str, tuple[int, int]] = {
    "num_attention_heads": (16, 512),
    "attention_head_dim": (72, 8_192),
    "in_channels": (4, 64),
    "num_layers": (28, 256),
    "sample_size": (32, 4_096),
    "patch_size": (2, 64),
    "num_embeds_ada_norm": (1000, 1_000_000),
}
_OTHERS = {"out_channels?": (int, None), "norm_eps?": float, "dropout?": float}
# Keys that change the network, with the values that are read, the default of diffusers first.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "upcast_attention": (False,),
    "dropout": (0.0,),
}
# Those of Transformer2DModel alone, whose defaults are not all those of a DiT; `norm_num_groups` has no effect.
_FORMER: Mapping[str, tuple[Any, ...]] = {
    "cross_attention_dim": (None,),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False,),
    "double_self_attention": (False,),
    "use_linear_projection": (False,),
    "attention_type": ("default",),
    "caption_channels": (None,),
    "interpolation_scale": (None, 1),
    "use_additional_conditions": (None, False),
}
_FORMER_DEFAULTS: Mapping[str, Any] = {
    "activation_fn": "geglu",
    "attention_bias": False,
    "norm_type": "layer_norm",
    "norm_elementwise_affine": True,
}
_EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_BLOCK_LAYERS = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_LAYERS = {"x_embedder.proj": "pos_embed.proj", "final_layer.adaLN_modulation.1": "proj_out_1"}
_LAYERS |= {"final_layer.linear": "proj_out_2"}
_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def read_diffusers_dit(place: Path, *, folder: Path) -> Snapshot:
    """Read a network of `save_pretrained` in the folder `place`, which is or is in `folder`, as one of law `ddpm`.

    The tensors are float32, with the names of networks/dit.py. Another class, an option that networks/dit.py lacks,
    another process than DDPM's, damaged or missing files, numbers that are not finite, tensors that are not those of
    the config, and blocks with embeddings of their own are a ValueError.
    """
    config = diffusers_dit_config(place / CONFIG)
    check_scheduler(place)
    weights = weights_in(place)
    ours = [name for name, _ in tensor_shapes(config) if name != "pos_embed"]
    given = checked_tensors(
        weights, read_published_weights(weights), shapes=dict(_folder_shapes(config)), by="config.json"
    )
    side = config["img_resolution"] // config["patch_size"]
    tensors = {f"{PREFIX}pos_embed": position_table(config["hidden_size"], side)[None]}  # which the folder lacks
    for name in ours:
        sources = list(_sources(name, depth=config["depth"]))
        parts = [given[source] for source in sources]
        if ".qkv." in name:
            parts = [torch.cat(parts)]
        elif other := next((s for s, each in zip(sources, parts, strict=True) if not torch.equal(each, parts[0])), ""):
            found = f"{other}: got other numbers than {sources[0]}, expected the same embedding in all blocks"
            raise ValueError(f"{weights}: {found}. Fix: choose another network")
        tensors[f"{PREFIX}{name}"] = parts[0].to(torch.float32)
    note = {"source": f"{folder.name}/{weights.relative_to(folder)}", "class_name": CLASSES[0]}
    return Snapshot(config=config, state_dict=tensors, note={**note, "sha256": known_digest(weights)})


def diffusers_dit_config(path: Path) -> dict[str, Any]:
    """Return the config of a denoiser from a config.json; ValueError as in `read_diffusers_dit`."""
    given = read_config(path)
    if (kind := given.get("_class_name")) not in CLASSES:
        raise ValueError(f"{path}: _class_name: got {str(kind)[:80]!r}, expected {CLASSES[0]}. Fix: choose such a one")
    if found := misfit(given, {f"{key}?": int for key in _NUMBERS} | _OTHERS):
        raise ValueError(f"{path}: {found}. Fix: restore the file as published")
    is_former = kind == CLASSES[1]
    stated = {**(_FORMER_DEFAULTS if is_former else {}), **given}
    check_values(path, stated, {**_FIXED, **(_FORMER if is_former else {})}, expected="as of a DiT")
    known = {*_NUMBERS, *_FIXED, "out_channels", "norm_eps", "norm_num_groups", *(_FORMER if is_former else ())}
    if unknown := [key for key, value in given.items() if key not in known and key[:1] != "_" and value is not None]:
        raise ValueError(f"{path}: {unknown[0][:80]}: got an option of {kind} that is not known here, expected none")
    numbers = {key: given.get(key, default) for key, (default, _) in _NUMBERS.items()}
    channels, width = numbers["in_channels"], numbers["num_attention_heads"] * numbers["attention_head_dim"]
    outputs, eps = given.get("out_channels") or channels, given.get("norm_eps", 1e-5)
    checks = {
        **{key: (numbers[key], 1 <= numbers[key] <= most, f"1 to {most:,}") for key, (_, most) in _NUMBERS.items()},
        "attention_head_dim": (width, width <= 8_192 and not width % 4, "a width that is a multiple of 4, up to 8,192"),
        "sample_size": (numbers["sample_size"], not numbers["sample_size"] % numbers["patch_size"], "whole patches"),
        "out_channels": (outputs, outputs in (channels, 2 * channels), f"{channels} or {2 * channels}"),
        "norm_eps": (eps, 0 < eps < 1, "a small number above 0"),
    }
    for key, (value, is_right, expected) in checks.items():
        if not is_right:
            raise ValueError(f"{path}: {key}: got {value}, expected {expected}. Fix: choose another network")
    return {
        "name": "dit",
        "img_resolution": numbers["sample_size"],
        "img_channels": channels,
        "label_dim": numbers["num_embeds_ada_norm"],
        "patch_size": numbers["patch_size"],
        "hidden_size": width,
        "depth": numbers["num_layers"],
        "num_heads": numbers["num_attention_heads"],
        "learn_sigma": outputs == 2 * channels,
        "freq_shift": 1,
        "mlp_norm_eps": eps,
        "preconditioning": "ddpm",
    }


def diffusers_config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a network `dit` with classes from its config as in a snapshot."""
    channels = config["img_channels"]
    return {
        "_class_name": CLASSES[0],
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["hidden_size"] // config["num_heads"],
        "in_channels": channels,
        "out_channels": channels * (1 + config["learn_sigma"]),
        "num_layers": config["depth"],
        "sample_size": config["img_resolution"],
        "patch_size": config["patch_size"],
        "num_embeds_ada_norm": config["label_dim"],
        "norm_eps": config.get("mlp_norm_eps", 1e-6),
        **{key: values[0] for key, values in _FIXED.items()},
    }


def diffusers_tensors_of(network: Snapshot) -> dict[str, Tensor]:
    """Return the tensors of a network `dit` with classes under the names of diffusers.

    Each block has the embeddings of time and class again. A table without a row for no class gets one of zeros, which
    is what its network adds there. ValueError: the table of positions is another one.
    """
    config, found = network.config, dict[str, Tensor]()
    for name, each in network.state_dict.items():
        name = name.removeprefix(PREFIX)
        if name == "pos_embed":
            if not torch.allclose(each[0], position_table(each.shape[2], math.isqrt(each.shape[1])), atol=1e-5):
                raise ValueError("pos_embed: got other numbers than the table of positions, which diffusers has")
            continue
        if name.startswith("y_embedder.") and not config.get("no_class", True):
            each = torch.cat([each, torch.zeros_like(each[:1])])
        sources = list(_sources(name, depth=config["depth"]))
        parts = each.chunk(3) if ".qkv." in name else [each] * len(sources)
        found.update(zip(sources, parts, strict=True))
    return {name: found[name] for name, _ in _folder_shapes(config)}


def _sources(name: str, *, depth: int) -> Iterator[str]:
    """Yield the names in diffusers of one of our tensors: three parts, equal ones of all blocks, or one."""
    layer, _, kind = name.rpartition(".")
    if (embedder := _EMBEDDERS.get(layer)) is not None:
        yield from (f"transformer_blocks.{index}.norm1.emb.{embedder}.{kind}" for index in range(depth))
    elif (block := _IN_BLOCK.fullmatch(name)) is None:
        yield f"{_LAYERS[layer]}.{kind}"
    else:
        layers = [f"attn1.to_{part}" for part in "qkv"] if block[2] == "attn.qkv" else [_BLOCK_LAYERS[block[2]]]
        yield from (f"transformer_blocks.{block[1]}.{each}.{kind}" for each in layers)


def _folder_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each tensor in a folder."""
    for name, shape in tensor_shapes({**config, "no_class": True}):
        if name != "pos_embed":
            part = (shape[0] // 3, *shape[1:]) if ".qkv." in name else shape
            yield from ((source, part) for source in _sources(name, depth=config["depth"]))
