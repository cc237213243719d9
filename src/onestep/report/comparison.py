"""Comparison of two measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onestep.files import read_json

_SAME = ("metric", "features", "feature_weights_sha256", "reference", "images")


def compare(first: Path, second: Path) -> list[str]:
    """Return the values of two metric files with their differences, and a line for each reason not to compare them.

    Raises:
        ValueError: A file is not a measurement, or the two have no value in common.
    """
    one, other = _read(first), _read(second)
    common = [name for name in one["values"] if name in other["values"]]
    if not common:
        raise ValueError(
            f"{second}: got {_names(other)}, expected a value of {first}: {_names(one)}. Fix: compare others"
        )
    head = [f"{first}: {_origin(one)}", f"{second}: {_origin(other)}"]
    return [*head, *(_line(name, one, other) for name in common), *_obstacles(one, other)]


def _read(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("values"), dict):
        raise ValueError(f"{path}: got no measurement. Fix: choose a file of results/metrics/ or of `onestep evaluate`")
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
    for fact in _SAME:
        if one.get(fact) != other.get(fact):
            yield f"not comparable: {fact} is {one.get(fact)!r} and {other.get(fact)!r}"
