"""From a plain document to the frozen values, and back: every key known, every value of its type."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from onestep.config.messages import Place, Problem, found, unknown_key
from onestep.config.sections import Experiment
from onestep.config.wording import place_of, worded

_UNKNOWN = "unexpected_keyword_argument"


def plain(document: Any) -> Any:
    """Return a document with copies for aliases, and text for dates, which a config does not use."""
    return json.loads(json.dumps(document, default=str))


def to_values(document: Any) -> tuple[Experiment | None, list[Problem]]:
    """Return the values that a document with resolved components stands for; None where something is wrong with it."""
    if not isinstance(document, dict):
        return None, [Problem((), f"{found(document)}, expected a mapping of: {', '.join(_keys_at(()))}")]
    try:
        # JSON, because only there is a list a tuple and yet a text no number.
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
        kind = get_type_hints(kind)[step] if dataclasses.is_dataclass(kind) else _member(kind)
        if type(None) in get_args(kind):
            kind = _member(kind)
    return [field.name for field in dataclasses.fields(kind)]


def _member(kind: Any) -> Any:
    """Return the type X of a `Mapping[str, X]`, a `tuple[X, ...]` or an `X | None`."""
    return next(each for each in get_args(kind) if dataclasses.is_dataclass(each))
