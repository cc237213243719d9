"""From a plain document to frozen values by pydantic, and pydantic's errors in this project's words."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from onestep.config.constraints import EXPECTED_BY_PATTERN
from onestep.config.messages import MISSING, Place, Problem, closest, got, listed
from onestep.config.run import Run, key_of
from onestep.config.sections import Experiment

_EXPECTED: Mapping[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "dataclass_type": "a mapping",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number from {ge:g} on",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number up to {le:g}",
    "literal_error": "{expected}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
}
_LENGTHS = ("too_short", "too_long")
_NUMBERS = ("int_type", "int_from_float", "float_type")
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def plain(document: Any) -> Any:
    """Return a document with copies for aliases, and text for dates, which a config does not use."""
    return json.loads(json.dumps(document, default=str))


def hidden_characters(document: Any, place: Place = ()) -> list[Problem]:
    """Return the problems of texts and keys with line breaks and other control characters.

    They are parts of names, titles, labels, file names, and of lines of batch scripts. A caption has line breaks.
    """
    if isinstance(document, str):
        is_caption = len(place) == 3 and place[0] == "tables" and place[2] == "caption"
        found = next((each for each in document if _is_hidden(each) and not (is_caption and each == "\n")), None)
        if document.isprintable() or found is None:
            return []
        fix = (
            "Fix: write it in one line, as a block of text by >- in place of > or |"
            if found == "\n"
            else "Fix: remove it"
        )
        return [Problem(place, f"{got(document)} with the control character {found!r}. {fix}")]
    if isinstance(document, dict):
        keys = [Problem((*place, key), "a key with control characters") for key in document if hidden_characters(key)]
        return [*keys, *(each for key, value in document.items() for each in hidden_characters(value, (*place, key)))]
    values = enumerate(document) if isinstance(document, list) else ()
    return [each for index, value in values for each in hidden_characters(value, (*place, index))]


def _is_hidden(character: str) -> bool:
    """Return whether a character controls, breaks a line, is half of one, or turns the direction of text."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


def to_values(document: Any) -> tuple[Experiment | None, list[Problem]]:
    """Return the values of a document with resolved components; None and the problems where something is wrong."""
    if not isinstance(document, dict):
        return None, [Problem((), f"{got(document)}, expected a mapping of: {', '.join(_keys_at(()))}")]
    try:
        # Strict types are tuples from lists and dataclasses from mappings in JSON mode, but not in Python mode.
        return _experiment_adapter().validate_json(json.dumps(document)), []
    except ValidationError as error:
        return None, worded(error.errors(include_url=False), keys=_keys_at)


# Built once, because building takes longer than reading a config; it depends on the dataclasses alone.
@functools.cache
def _experiment_adapter() -> TypeAdapter[Experiment]:
    return TypeAdapter(Experiment)


def _keys_at(place: Place) -> list[str]:
    def member(kind: Any) -> Any:  # X of a `Mapping[str, X]`, a `tuple[X, ...]` or an `X | None`
        return next(each for each in get_args(kind) if dataclasses.is_dataclass(each))

    kind: Any = Experiment
    for step in place:
        kind = get_type_hints(kind)[str(step)] if dataclasses.is_dataclass(kind) else member(kind)
        if type(None) in get_args(kind):
            kind = member(kind)
    written = ["base", "vary"] if kind is Run else []  # resolved before; see onestep.config.families
    return [*(key_of(field) for field in dataclasses.fields(kind)), *written]


def worded(
    errors: Iterable[Mapping[str, Any]], *, keys: Callable[[Place], Sequence[str]], within: Place = ()
) -> list[Problem]:
    """Return pydantic's errors about the value at `within` as problems; `keys` returns those of a mapping in it."""
    # pydantic marks a mapping's own key by a step "[key]".
    placed = [(tuple(step for step in error["loc"] if step != "[key]"), error) for error in errors]
    # pydantic counts the valid entries of a list, so a list with a wrong entry is also too short; its error suffices.
    lists = {place[:-1] for place, _ in placed if place}
    kept = [(place, error) for place, error in placed if error["type"] not in _LENGTHS or place not in lists]
    return [Problem((*within, *place), _text(error, place, keys=keys)) for place, error in kept]


def _text(error: Mapping[str, Any], place: Place, *, keys: Callable[[Place], Sequence[str]]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind in _UNKNOWN:
        allowed = keys(place[:-1])
        return f"unknown key; allowed: {listed(allowed)}{closest(place[-1], allowed)}"
    if kind in _LENGTHS:
        return f"got {context['actual_length']} entries, expected {_EXPECTED[kind].format(**context)}"
    if kind == "missing":
        return MISSING
    if kind == "string_pattern_mismatch":
        return f"{got(value)}, expected {EXPECTED_BY_PATTERN[context['pattern']]}"
    if kind == "value_error":  # of the config's own constraints
        return f"{got(value)}, {context['error']}"
    if kind not in _EXPECTED:
        return f"{got(value)}: {error['msg']}"
    hint = _number_hint(value, whole=kind != "float_type") if kind in _NUMBERS else ""
    return f"{got(value)}, expected {_EXPECTED[kind].format(**context)}{hint}"


def _number_hint(value: Any, *, whole: bool) -> str:
    """Return the spelling for text that looks like a number, and for a whole number with a fraction of zero."""
    try:
        number = float(value) if isinstance(value, (str, float)) else math.nan
    except ValueError:
        return ""
    if not math.isfinite(number) or (whole and not number.is_integer()):
        return ""
    if isinstance(value, float):
        return f". Fix: write {int(number):_}"
    mantissa, has_exponent, exponent = value.strip().lower().partition("e")
    if not has_exponent:
        return ". Fix: remove the quotes"
    sign = "" if exponent[:1] in ("-", "+") else "+"
    spelled = f"{int(number):_}" if whole else f"{mantissa}{'' if '.' in mantissa else '.0'}e{sign}{exponent}"
    return f". YAML reads {value} as text. Fix: write {spelled}"
