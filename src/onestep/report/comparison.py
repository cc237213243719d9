"""Two measurements side by side: their numbers, and whether these may be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onestep.files import read_json

_SAME = ("metric", "features", "feature_weights_sha256", "reference", "images")


def compare(first: Path, second: Path) -> list[str]:
    """Return what two metric files say, as lines: each value, the second less the first, and what forbids comparing.

    Raises:
        ValueError: A file is no measurement, or the two have no value in common.
    """
    one, other = _read(first), _read(second)
    common = [name for name in one["values"] if name in other["values"]]
    if not common:
        raise ValueError(f"{first} has {_names(one)}, {second} has {_names(other)}; nothing of it can be compared")
    head = [f"{first}: {_origin(one)}", f"{second}: {_origin(other)}"]
    return [*head, *(_line(name, one, other) for name in common), *_obstacles(one, other)]


def _read(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("values"), dict):
        raise ValueError(f"{path}: no measurement; expected a file of results/metrics/ as `onestep measure` writes it")
    return content


def _names(measurement: Mapping[str, Any]) -> str:
    return ", ".join(measurement["values"])


def _origin(measurement: Mapping[str, Any]) -> str:
    if "source" in measurement:  # by `onestep evaluate`
        return str(measurement["source"])
    return f"{measurement['model']}, {measurement['sampler']}, seeds {measurement['seeds']}"


def _line(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    first, second = one["values"][name], other["values"][name]
    return f"{name}: {first:.6g} and {second:.6g}, difference {second - first:+.6g}"


def _obstacles(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each fact by which the two were measured differently."""
    for fact in _SAME:
        if one.get(fact) != other.get(fact):
            yield f"not comparable: {fact} is {one.get(fact)!r} and {other.get(fact)!r}"
