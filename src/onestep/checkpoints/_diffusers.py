"""What the readers of diffusers' folders share: config.json, the names of layers, tensors under their current names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from onestep.files import parse_json, read_text
from onestep.shapes import misfit

_MOST_CONFIG = 2**20  # bytes
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.13
_OLD_NAME = re.compile(rf"(attentions\.\d+\.)({'|'.join(_OLD_NAMES)})(\.(?:weight|bias))")

Shapes: TypeAlias = Iterator[tuple[str, tuple[int, ...]]]
"""Name and shape of each tensor."""


def check_values(path: Path, given: Mapping[str, Any], values: Mapping[str, tuple[Any, ...]], *, expected: str) -> None:
    """Compare the values of a config with those that are read, the default of diffusers first; else ValueError."""
    for key, allowed in values.items():
        value = given.get(key, allowed[0])
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed):
            known = f"{allowed[0]}, {expected}" if len(allowed) == 1 else f"{allowed[0]} or {allowed[1]}, {expected}"
            raise ValueError(f"{path}: {key}: got {str(value)[:80]!r}, expected {known}. Fix: choose another network")


def read_config(path: Path) -> dict[str, Any]:
    """Return a config as a mapping; ValueError: it is none, or no JSON."""
    try:
        value = parse_json(read_text(path, most=_MOST_CONFIG))
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: got no JSON ({str(error)[:120]}). Fix: restore it as published") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: got {type(value).__name__}, expected a mapping. Fix: restore it as published")
    return value


def read_options(
    path: Path,
    *,
    kind: str,
    options: Mapping[str, tuple[Any, Any]],
    fixed: Mapping[str, tuple[Any, ...]],
    others: Mapping[str, Any],
    of: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a network from the config of class `kind`, with defaults, and the config as it is.

    `options` has default and type of each, `others` the shape of further keys; values of `fixed` are those of
    `check_values`, options `of` a network. Another class, type, value or key is a ValueError.
    """
    given = read_config(path)
    if (found := given.get("_class_name")) != kind:
        raise ValueError(f"{path}: _class_name: got {str(found)[:80]!r}, expected {kind}. Fix: choose such a network")
    if wrong := misfit(given, {f"{key}?": shape for key, (_, shape) in options.items()} | dict(others)):
        raise ValueError(f"{path}: {wrong}. Fix: restore the file as published")
    check_values(path, given, fixed, expected=f"an option of {of}")
    known = {*options, *fixed, *(key.removesuffix("?") for key in others)}
    if unknown := [key for key, value in given.items() if key not in known and key[:1] != "_" and value is not None]:
        raise ValueError(f"{path}: {unknown[0][:80]}: got an option of {kind} that is not known here, expected none")
    return {key: given.get(key, default) for key, (default, _) in options.items()}, given


def with_current_names(
    path: Path, given: Mapping[str, Tensor], *, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return tensors under current names; ValueError unless they are exactly those of `shapes`."""
    found: dict[str, Tensor] = {}
    for old, tensor in given.items():
        name = _OLD_NAME.sub(lambda match: f"{match[1]}{_OLD_NAMES[match[2]]}{match[3]}", old)
        if name in found:
            raise ValueError(f"{path}: got two tensors for {name}, expected one. Fix: restore it as published")
        wanted = shapes.get(name, ())
        # As 1x1 convolutions, the linear layers of attention in still older files.
        is_pointwise = "attentions." in name and len(wanted) == 2 and tensor.shape == (*wanted, 1, 1)
        found[name] = tensor.flatten(1) if is_pointwise else tensor
    if wrong := sorted(name for name in found.keys() | shapes.keys() if _shape(found, name) != shapes.get(name)):
        listed = f"{wrong[0][:120]}: got {_words(_shape(found, wrong[0]))}, expected {_words(shapes.get(wrong[0]))}"
        more = f" ({len(wrong)} tensors differ)" if len(wrong) > 1 else ""
        raise ValueError(f"{path}: {listed}, by config.json{more}. Fix: restore both as published")
    if odd := next((name for name, each in found.items() if not each.is_floating_point()), None):
        raise ValueError(
            f"{path}: {odd}: got {found[odd].dtype}, expected floating point. Fix: restore it as published"
        )
    return found


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _words(shape: tuple[int, ...] | None) -> str:
    return "no tensor" if shape is None else str(list(shape))


def residual_shapes(name: str, inputs: int, width: int, *, emb: int | None = None) -> Shapes:
    """Yield the tensors of a residual block, with the layer of an embedding of width `emb` if there is one."""
    yield from layer_shapes(f"{name}.norm1", inputs)
    yield from layer_shapes(f"{name}.conv1", width, inputs, 3, 3)
    if emb is not None:
        yield from layer_shapes(f"{name}.time_emb_proj", width, emb)
    yield from layer_shapes(f"{name}.norm2", width)
    yield from layer_shapes(f"{name}.conv2", width, width, 3, 3)
    if inputs != width:
        yield from layer_shapes(f"{name}.conv_shortcut", width, inputs, 1, 1)


def attention_shapes(name: str, width: int) -> Shapes:
    """Yield the tensors of self-attention."""
    yield from layer_shapes(f"{name}.group_norm", width)
    for each in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from layer_shapes(f"{name}.{each}", width, width)


def layer_shapes(name: str, *shape: int) -> Shapes:
    """Yield weight and bias of a layer."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
