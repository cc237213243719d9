"""The demo's config with changes, for tests of reading configs."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from onestep.config import ConfigError, parse_experiment

DEMO = Path(__file__).parents[2] / "demo" / "config.yaml"
D2O = "runs.digits_d2o"
TAKEN_AWAY = object()


def demo_with(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the demo's config with the values at dotted places replaced, or taken away."""
    document = json.loads(_demo())
    for place, value in changes.items():
        *above, last = place.split(".")
        holder = document
        for step in above:
            holder = holder[int(step) if isinstance(holder, list) else step]
        if value is TAKEN_AWAY:
            del holder[last]
        elif isinstance(holder, list):
            holder[int(last) :] = [value]
        else:
            holder[last] = value
    return document


@functools.cache
def _demo() -> str:
    return json.dumps(yaml.safe_load(DEMO.read_text()))


def problems(document: Any) -> tuple[str, ...]:
    """Return the problems for which a config is refused, one line each."""
    with pytest.raises(ConfigError) as caught:
        parse_experiment(document, source="config.yaml")
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return caught.value.problems


def problems_at(document: Any, place: str) -> list[str]:
    """Return the problems of a config at a place."""
    return [each for each in problems(document) if each.startswith(f"config.yaml: {place}: ")]
