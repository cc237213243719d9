"""The verbs that print: a table, and the comparison of two measurements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestep.files import read_text
from onestep.records import differing, fact_of, read_measurement


def show(table: Path, /, *, page: Path | None = None) -> int:
    """Print a table.

    Args:
        table: The table (.json).
        page: Also print where this results page is.
    """
    print(read_text(table.with_suffix(".md")))
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
    differences = (["metric"] if one.get("metric") != other.get("metric") else []) + differing(one, other)
    for fact in differences:
        print(f"not comparable: {fact} is {fact_of(one, fact)!r} and {fact_of(other, fact)!r}")
    return int(bool(differences))


def _measurement(path: Path) -> Mapping[str, Any]:
    try:
        return read_measurement(path)
    except ValueError as error:
        fix = "Fix: choose a file of results/metrics/ or of `onestep evaluate`"
        raise ValueError(f"{path}: got no measurement ({error}). {fix}") from error


def _origin(measurement: Mapping[str, Any]) -> str:
    if "source" in measurement:  # by `onestep evaluate`
        return str(measurement["source"])
    found = [
        measurement[key] for key in ("dataset", "input", "model", "sampler") if isinstance(measurement.get(key), str)
    ]
    return ", ".join(found + ([f"seeds {measurement['seeds']}"] if "seeds" in measurement else [])) or "of no name"
