"""Expected shapes of JSON documents, and the first place where a document has another one.

A shape is a type (`float` is any finite number, `int` a whole one), None, a tuple of alternatives, `[shape]` for a
list, `{str: shape}` for a mapping of any names, or `{"key": shape, "other?": shape}` for a mapping with these keys, of
which those with a question mark may be absent. Further keys are free.
"""

from __future__ import annotations

import math
from typing import Any

_WORDS = {float: "a finite number", int: "a whole number", str: "text", bool: "true or false", dict: "a mapping"}
_WORDS |= {list: "a list", type(None): "null"}
_SHOWN = 40


def misfit(value: Any, shape: Any, *, place: str = "") -> str | None:
    """Return how a value deviates from its shape, such as "values.frechet: got 'x', expected a finite number"."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _found(value, "a list", place)
        return next(filter(None, (misfit(v, shape[0], place=f"{place}[{i}]") for i, v in enumerate(value))), None)
    if isinstance(shape, dict):
        return _misfit_of_mapping(value, shape, place) if isinstance(value, dict) else _found(value, "a mapping", place)
    kinds = shape if isinstance(shape, tuple) else (shape,)
    if any(_is(value, kind) for kind in kinds):
        return None
    return _found(value, " or ".join(_WORDS.get(type(None) if k is None else k, "a mapping") for k in kinds), place)


def _misfit_of_mapping(value: dict[Any, Any], shape: dict[Any, Any], place: str) -> str | None:
    dot = f"{place}." if place else ""
    if str in shape:
        return next(filter(None, (misfit(v, shape[str], place=f"{dot}{k}"[:200]) for k, v in value.items())), None)
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if name not in value:
            if name == key:
                return f"{dot}{name}: got none, expected it"
        elif found := misfit(value[name], inner, place=f"{dot}{name}"):
            return found
    return None


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if isinstance(kind, (dict, list)):
        return misfit(value, kind) is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _found(value: Any, expected: str, place: str) -> str:
    if isinstance(value, (dict, list)):
        shown = "a mapping" if isinstance(value, dict) else "a list"
    else:
        shown = "null" if value is None else repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return f"{f'{place}: ' if place else ''}got {shown}, expected {expected}"
