"""The verbs that print: a table, and the comparison of two measurements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestep.files import read_json

_SAME = ("metric", "features", "feature_weights_sha256", "reference", "images")


def show(table: Path, /, *, page: Path | None = None) -> int:
    """Print a table.

    Args:
        table: The table (.json).
        page: Also print where this results page is.
    """
    print(table.with_suffix(".md").read_text(encoding="utf-8"))
    if page is not None:
        print(f"Results page: {page.resolve()}")
    return 0


def compare(first: Path, second: Path, /) -> int:
    """Compare two measurements; the exit code is 1 if they are not comparable.

    Args:
        first: A measurement (.json).
        second: The measurement to compare it with (.json).
    """
    one, other = _measurement(first), _measurement(second)
    common = [name for name in one["values"] if other["values"].get(name) is not None]
    if not common:
        expected, got = (", ".join(each["values"]) for each in (one, other))
        raise ValueError(f"{second}: got {got}, expected a value of {first}: {expected}. Fix: compare others")
    print(f"{first}: {_origin(one)}\n{second}: {_origin(other)}")
    for name in common:
        ours, theirs = one["values"][name], other["values"][name]
        print(f"{name}: {ours:.6g} and {theirs:.6g}, difference {theirs - ours:+.6g}")
    differences = [fact for fact in _SAME if one.get(fact) != other.get(fact)]
    for fact in differences:
        print(f"not comparable: {fact} is {one.get(fact)!r} and {other.get(fact)!r}")
    return int(bool(differences))


def _measurement(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("values"), dict):
        raise ValueError(f"{path}: got no measurement. Fix: choose a file of results/metrics/ or of `onestep evaluate`")
    return content


def _origin(measurement: Mapping[str, Any]) -> str:
    if "source" in measurement:  # by `onestep evaluate`
        return str(measurement["source"])
    return f"{measurement['model']}, {measurement['sampler']}, seeds {measurement['seeds']}"
