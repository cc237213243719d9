"""Constraints on config values, as annotations of standard dataclasses.

Training reads the dataclasses without pydantic; reading config.yaml checks the same dataclasses with it. pydantic calls
`__get_pydantic_core_schema__` of the markers below, so this module does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

_T = TypeVar("_T")

STRICT: Mapping[str, Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""pydantic's configuration of all dataclasses of the config: no conversion of types, no unknown keys."""

VALUE_IN_NAME = r"[A-Za-z0-9_.+-]+"
"""Regular expression of values in the names of a family's runs."""

RUN_NAME = rf"[a-z][a-z0-9_]*(?:\.[a-z0-9_.]+={VALUE_IN_NAME})*"
"""Regular expression of run names: `d2o`, and `d2o.seed=1` or `d2o.lr=0.0001.seed=1` for members of a family.

It has no groups, so that it may be part of others, such as the constraint of a wildcard of Snakemake.
"""

_NAME = r"^[a-z][a-z0-9_]*$"
_RUN = f"^{RUN_NAME}$"
_DIGEST = r"^[0-9a-f]{64}$"
_SEED_BLOCK = r"^(0|[1-9][0-9]*)-(0|[1-9][0-9]*)$"
_POLICY = r"^(last|best_[a-z][a-z0-9_]*)$"
_METRIC_VALUE = r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$"

EXPECTED_BY_PATTERN: Mapping[str, str] = {
    _NAME: "small letters, digits and _, first a letter",
    _RUN: "a run's name: small letters, digits and _, first a letter; or such as name.seed=1",
    _DIGEST: "64 hexadecimal digits",
    _SEED_BLOCK: "first-last, such as 0-1999",
    _POLICY: "last, or best_ and a column, such as best_fd",
    _METRIC_VALUE: "metric.value, such as fd.frechet",
}
"""What a value has to look like, by its regular expression, for messages."""


class Constraint:
    """Limits of a value, in the keys of pydantic's core schemas: gt, ge, lt, le, min_length, max_length, pattern."""

    def __init__(self, **limits: float | str) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(source), **self.limits}


class Apply:
    """A function that is applied to a valid value, or to a value before it is checked."""

    def __init__(self, function: Callable[[Any], Any], *, when: Literal["after", "before"] = "after") -> None:
        self.function, self.when = function, when

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        function = {"type": "no-info", "function": self.function}
        return {"type": f"function-{self.when}", "function": function, "schema": handler(source)}


def frozen(value: Any) -> Any:
    """Return a JSON value with read-only mappings, and tuples for lists."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: frozen(each) for key, each in value.items()})
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def empty() -> Mapping[str, Any]:
    """Return a read-only mapping without entries."""
    return MappingProxyType({})


Text = Annotated[str, Constraint(min_length=1)]
Name = Annotated[str, Constraint(pattern=_NAME)]
RunName = Annotated[str, Constraint(pattern=_RUN)]
Digest = Annotated[str, Constraint(pattern=_DIGEST)]
SeedBlock = Annotated[str, Constraint(pattern=_SEED_BLOCK)]
Policy = Annotated[str, Constraint(pattern=_POLICY)]
MetricValue = Annotated[str, Constraint(pattern=_METRIC_VALUE)]
Count = Annotated[int, Constraint(gt=0)]
Natural = Annotated[int, Constraint(ge=0)]
Positive = Annotated[float, Constraint(gt=0)]
NotNegative = Annotated[float, Constraint(ge=0)]
Share = Annotated[float, Constraint(ge=0, le=1)]
ShareBelowOne = Annotated[float, Constraint(ge=0, lt=1)]
Named = Annotated[Mapping[Name, _T], Apply(frozen)]
Options = Annotated[Mapping[str, Any], Apply(frozen)]
