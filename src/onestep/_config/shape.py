"""From a plain document to the frozen values, and back: every key known, every value of its type."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from onestep._config.problems import Place, Problem, found, unknown_key
from onestep._config.values import Experiment
from onestep._config.wording import place_of, worded

_UNKNOWN = "unexpected_keyword_argument"


def shape(document: Any) -> tuple[Experiment | None, list[Problem]]:
    """Return the values a document with resolved components stands for; None where something is wrong with it."""
    if not isinstance(document, dict):
        sections = ", ".join(field.name for field in dataclasses.fields(Experiment))
        return None, [Problem((), f"{found(document)}, expected a mapping with sections among: {sections}")]
    try:
        return TypeAdapter(Experiment).validate_json(json.dumps(document)), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    unknown = [place_of(error) for error in errors if error["type"] == _UNKNOWN]
    problems = [Problem(place, unknown_key(str(place[-1]), _keys_at(place[:-1]))) for place in unknown]
    return None, problems + worded(error for error in errors if error["type"] != _UNKNOWN)


def _keys_at(place: Place) -> list[str]:
    """Return the keys that the mapping at a place may have."""
    kind: Any = Experiment
    for step in place:
        kind = _inner(get_type_hints(kind)[step] if dataclasses.is_dataclass(kind) else get_args(kind)[-1])
    return [field.name for field in dataclasses.fields(kind)]
