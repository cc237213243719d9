"""State dicts of DiT and SiT as published, by torch.save or in safetensors, of which nothing is executed.

A state dict has neither the law nor the number of heads. The law is stated by its reader, the heads follow from the
width, as in the published sizes S, B, L and XL (arXiv:2212.09748, table 1).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from onestep.checkpoints.digests import known_digest
from onestep.checkpoints.published_weights import read_published_weights
from onestep.checkpoints.snapshot import Snapshot

LAWS: Mapping[str, str] = {"ddpm": "DiT", "flow": "SiT"}
"""Of the state dicts that are read, with the name of the network whose law it is."""

PREFIX = "model."
"""Of the names of a network's tensors in a denoiser; the names of the file are those behind it."""

HEADS: Mapping[int, int] = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads by width: of sizes S, B, L and XL."""

# Of a checkpoint of the training scripts: averaged weights first.
_WRAPPERS = ("ema", "model", "state_dict")
_BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.attn\.qkv\.weight")
_PATCHES = "x_embedder.proj.weight"
_ANGLES, _MLP_RATIO, _MOST_DEPTH, _MOST_PATCH, _MOST_CHANNELS = 256, 4, 256, 64, 64


def read_dit(path: Path, *, law: str | None) -> Snapshot:
    """Read a state dict of DiT (law `ddpm`) or SiT (law `flow`) as a denoiser.

    The file holds tensors by name (`.pt`, `.pth`, `.bin`, `.safetensors`), or is a checkpoint of the training scripts,
    of which the average `ema` is taken. The tensors are float32, with the names of networks/dit.py. The last row of the
    table of classes is that of none.

    Raises:
        ValueError: No law or another one, a file that is damaged or no state dict, tensors that are not those of a
            published size, or numbers that are not finite.
    """
    if law is None or law not in LAWS:
        known = " or ".join(f"{each} (of {kind})" for each, kind in LAWS.items())
        missing = "none, which a state dict does not show" if law is None else repr(law)
        raise ValueError(f"{path}: preconditioning: got {missing}, expected {known}. Fix: state it")
    given = read_published_weights(path, under=_WRAPPERS)
    config = _config(path, given)
    found = checked_tensors(path, given, shapes=dict(tensor_shapes(config)), by="the patch, width and depth in it")
    tensors = {f"{PREFIX}{name}": tensor.to(torch.float32) for name, tensor in found.items()}
    note = {"source": path.name, "class_name": LAWS[law], "sha256": known_digest(path)}
    return Snapshot(config={**config, "preconditioning": law}, state_dict=tensors, note=note)


def network_of_no_class(source: Path | str, network: Snapshot) -> Snapshot:
    """Return the network of a DiT or SiT for no class, as one without classes: equal up to float32's rounding.

    Its embedding of time and class is a sum, so the row of no class goes into the last bias of the time's. ValueError:
    another network, or one without classes or without that row.
    """
    config, table = network.config, f"{PREFIX}y_embedder.embedding_table.weight"
    if config.get("name") != "dit" or not config.get("label_dim") or not config.get("no_class", True):
        found = f"a {config.get('name', config.get('model_type'))} of {config.get('label_dim', 0)} classes"
        expected = "a DiT or SiT that was trained with a row of no class beside its classes"
        raise ValueError(f"{source}: without_classes: got {found}, expected {expected}. Fix: remove without_classes")
    state, bias = dict(network.state_dict), f"{PREFIX}t_embedder.mlp.2.bias"
    state[bias] = (state[bias].double() + state.pop(table)[-1].double()).to(state[bias].dtype)
    rest = {key: value for key, value in config.items() if key != "label_dropout"}
    note = {**network.note, "without_classes": config["label_dim"]}
    return dataclasses.replace(network, config={**rest, "label_dim": 0}, state_dict=state, note=note)


def holds_dit(path: Path) -> bool:
    """Return whether a file is in safetensors and has a tensor with a name of DiT's; False if it is damaged."""
    if path.suffix != ".safetensors":
        return False
    with contextlib.suppress(SafetensorError, OSError), safe_open(path, framework="pt", device="cpu") as file:
        return _PATCHES in file.keys()  # noqa: SIM118
    return False


def _config(path: Path, given: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of a network that its tensors show."""
    patches, table = _shape(path, given, _PATCHES, 4), _shape(path, given, "pos_embed", 3)
    rows = _shape(path, given, "y_embedder.embedding_table.weight", 2)[0]
    outputs = _shape(path, given, "final_layer.linear.weight", 2)[0]
    width, channels, patch, _ = patches
    side, depth = math.isqrt(table[1]), sum(_BLOCK.fullmatch(name) is not None for name in given)
    values = patch * patch * channels
    checks = {
        _PATCHES: (
            width in HEADS and channels <= _MOST_CHANNELS and patch <= _MOST_PATCH,
            f"{list(patches)}",
            f"[D, channels, patch, patch] with D of {', '.join(map(str, HEADS))}",
        ),
        "pos_embed": (side * side == table[1], f"{list(table)}", "[1, T, D] with a square T"),
        "y_embedder.embedding_table.weight": (rows > 1, f"{rows} rows", "one for each class, and one for none"),
        "final_layer.linear.weight": (outputs in (values, 2 * values), f"{outputs} rows", f"{values} or {2 * values}"),
        "blocks": (1 <= depth <= _MOST_DEPTH, f"{depth} blocks", f"1 to {_MOST_DEPTH}"),
    }
    for name, (is_right, found, expected) in checks.items():
        if not is_right:
            fix = "choose a file of DiT or SiT in size S, B, L or XL"
            raise ValueError(f"{path}: {name}: got {found}, expected {expected}. Fix: {fix}")
    return {
        "name": "dit",
        "img_resolution": side * patch,
        "img_channels": channels,
        "label_dim": rows - 1,
        "patch_size": patch,
        "hidden_size": width,
        "depth": depth,
        "num_heads": HEADS[width],
        "learn_sigma": outputs == 2 * values,
    }


def _shape(path: Path, given: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    shape = tuple(given[name].shape) if name in given else ()
    if len(shape) != dimensions or 0 in shape:
        found = list(shape) if name in given else f"no such tensor among {len(given)}"
        expected = f"expected that of a DiT or SiT, of {dimensions} dimensions"
        raise ValueError(f"{path}: {name}: got {found}, {expected}. Fix: choose another file")
    return shape


def checked_tensors(
    path: Path, given: Mapping[str, Tensor], *, shapes: Mapping[str, tuple[int, ...]], by: str
) -> dict[str, Tensor]:
    """Return tensors in the order of `shapes`; ValueError unless they are exactly those, of floating point numbers.

    `by` names what the shapes follow from.
    """
    wrong = sorted(
        name
        for name in given.keys() | shapes.keys()
        if name not in given or tuple(given[name].shape) != shapes.get(name)
    )
    if wrong:
        found, expected = (
            "no tensor" if shape is None else str(list(shape))
            for shape in (given[wrong[0]].shape if wrong[0] in given else None, shapes.get(wrong[0]))
        )
        more = f" ({len(wrong)} tensors differ)" if len(wrong) > 1 else ""
        listed = f"{wrong[0][:120]}: got {found}, expected {expected}, by {by}{more}"
        raise ValueError(f"{path}: {listed}. Fix: restore it as published")
    if odd := next((name for name, each in given.items() if not each.is_floating_point()), None):
        raise ValueError(
            f"{path}: {odd}: got {given[odd].dtype}, expected floating point. Fix: restore it as published"
        )
    return {name: given[name] for name in shapes}


def tensor_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each tensor of a `dit` with classes from its config as in a snapshot."""
    width, patch, channels = config["hidden_size"], config["patch_size"], config["img_channels"]
    yield "pos_embed", (1, (config["img_resolution"] // patch) ** 2, width)
    yield from _layer("x_embedder.proj", width, channels, patch, patch)
    yield from _layer("t_embedder.mlp.0", width, _ANGLES)
    yield from _layer("t_embedder.mlp.2", width, width)
    yield "y_embedder.embedding_table.weight", (config["label_dim"] + config.get("no_class", True), width)
    for index in range(config["depth"]):
        yield from _layer(f"blocks.{index}.attn.qkv", 3 * width, width)
        yield from _layer(f"blocks.{index}.attn.proj", width, width)
        yield from _layer(f"blocks.{index}.mlp.fc1", _MLP_RATIO * width, width)
        yield from _layer(f"blocks.{index}.mlp.fc2", width, _MLP_RATIO * width)
        yield from _layer(f"blocks.{index}.adaLN_modulation.1", 6 * width, width)
    yield from _layer("final_layer.linear", patch * patch * channels * (1 + config["learn_sigma"]), width)
    yield from _layer("final_layer.adaLN_modulation.1", 2 * width, width)


def position_table(width: int, side: int) -> Tensor:
    """Return the table of positions, float32 [side^2, width], row by row.

    The first half of each row are the sines, then the cosines, of the column times 10000^(-i / (width / 4)), the second
    half those of the row (arXiv:2212.09748, with the tables of arXiv:2111.06377).
    """
    count = width // 4
    rates = 10_000 ** -(torch.arange(count, dtype=torch.float64) / count)
    angles = torch.outer(torch.arange(side, dtype=torch.float64), rates)
    each = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    columns, rows = each[None].expand(side, -1, -1), each[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1).to(torch.float32)


def _layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
