"""Comparison of two measurements."""

from __future__ import annotations

from collections.abc import Mapping
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
    lines = [f"{first}: {_origin(one)}", f"{second}: {_origin(other)}"]
    for name, value in one["values"].items():
        if (theirs := other["values"].get(name)) is not None:
            lines.append(f"{name}: {value:.6g} and {theirs:.6g}, difference {theirs - value:+.6g}")
    if len(lines) == 2:
        expected, got = (", ".join(each["values"]) for each in (one, other))
        raise ValueError(f"{second}: got {got}, expected a value of {first}: {expected}. Fix: compare others")
    for fact in _SAME:
        if one.get(fact) != other.get(fact):
            lines.append(f"not comparable: {fact} is {one.get(fact)!r} and {other.get(fact)!r}")
    return lines


def _read(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("values"), dict):
        raise ValueError(f"{path}: got no measurement. Fix: choose a file of results/metrics/ or of `onestep evaluate`")
    return content


def _origin(measurement: Mapping[str, Any]) -> str:
    if "source" in measurement:  # by `onestep evaluate`
        return str(measurement["source"])
    return f"{measurement['model']}, {measurement['sampler']}, seeds {measurement['seeds']}"
