"""What pydantic found wrong, in this project's words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from onestep.config.constraints import EXPECTED_BY_PATTERN
from onestep.config.messages import Place, Problem, found, missing_key

_EXPECTED = MappingProxyType(
    {
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
        "string_too_short": "text that is not empty",
        "too_short": "at least {min_length}",
        "too_long": "at most {max_length}",
    }
)
_LENGTHS = ("too_short", "too_long")
_NUMBERS = ("int_type", "int_from_float", "float_type")


def worded(errors: Iterable[Mapping[str, Any]], *, within: Place = ()) -> list[Problem]:
    """Return pydantic's errors about a value at `within` as problems."""
    # A list with a wrong entry is also too short to pydantic, which counts right ones; the entry's own error says it.
    placed = [(place_of(error), error) for error in errors]
    lists = {place[:-1] for place, _ in placed if place}
    told = [(place, error) for place, error in placed if error["type"] not in _LENGTHS or place not in lists]
    return [Problem((*within, *place), _text(error)) for place, error in told]


def place_of(error: Mapping[str, Any]) -> Place:
    """Return where an error is; pydantic marks a mapping's own key by a step "[key]"."""
    return tuple(step for step in error["loc"] if step != "[key]")


def _text(error: Mapping[str, Any]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return missing_key()
    if kind in _LENGTHS:
        return f"found {context['actual_length']} entries, expected {_EXPECTED[kind].format(**context)}"
    if kind == "string_pattern_mismatch":
        return f"{found(value)}, expected {EXPECTED_BY_PATTERN[context['pattern']]}"
    if kind not in _EXPECTED:
        return f"{found(value)}: {error['msg']}"
    hint = _number_hint(value, whole=kind != "float_type") if kind in _NUMBERS else ""
    return f"{found(value)}, expected {_EXPECTED[kind].format(**context)}{hint}"


def _number_hint(value: Any, *, whole: bool) -> str:
    """Return how to write what looks like a number but is none to YAML, or none without a fraction."""
    try:
        number = float(value) if isinstance(value, (str, float)) else math.nan
    except ValueError:
        return ""
    if not math.isfinite(number) or (whole and not number.is_integer()):
        return ""
    if isinstance(value, float):
        return f"; write {int(number):_}"
    mantissa, has_exponent, exponent = value.strip().lower().partition("e")
    if not has_exponent:
        return "; take away the quotes"
    sign = "" if exponent[:1] in ("-", "+") else "+"
    spelled = f"{int(number):_}" if whole else f"{mantissa}{'' if '.' in mantissa else '.0'}e{sign}{exponent}"
    return f"; YAML reads {value} as text, write {spelled}"
