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

_NAME = r"^[a-z][a-z0-9_]{0,99}$"
_RUN = f"^{RUN_NAME}$"
_DIGEST = r"^[0-9a-f]{64}$"
_SEED_BLOCK = r"^(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})$"
_POLICY = r"^(last|best_[a-z][a-z0-9_]*)$"
_METRIC_VALUE = r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$"
_SITE_NAME = r"^[^\s\-][^\s]*$"
_GPU_TYPE = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"

EXPECTED_BY_PATTERN: Mapping[str, str] = {
    _NAME: "small letters, digits and _, first a letter, at most 100",
    _RUN: "a run's name: small letters, digits and _, first a letter; or such as name.seed=1",
    _DIGEST: "64 hexadecimal digits",
    _SEED_BLOCK: "first-last, such as 0-1999, below 2^32",
    _POLICY: "last, or best_ and a column, such as best_fd",
    _METRIC_VALUE: "metric.value, such as fd.frechet",
    _SITE_NAME: "a name without blanks, and without - in front",
    _GPU_TYPE: "the type alone, such as a100: letters, digits and ._+-",
}
"""What a value has to look like, by its regular expression, for messages."""


class Constraint:
    """Limits in the keys of pydantic's core schemas: gt, ge, lt, le, multiple_of, min_length, max_length, pattern."""

    def __init__(self, **limits: float | str) -> None:
        self.limits = limits

    def __repr__(self) -> str:
        return f"Constraint({', '.join(f'{key}={limit!r}' for key, limit in self.limits.items())})"

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(source), **self.limits}


class Apply:
    """A function that is applied to a valid value, or to a value before it is checked."""

    def __init__(self, function: Callable[[Any], Any], *, when: Literal["after", "before"] = "after") -> None:
        self.function, self.when = function, when

    def __repr__(self) -> str:
        return f"Apply({self.function.__name__}, when={self.when!r})"

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


def least(lowest: float) -> Apply:
    """Return the constraint of a number from `lowest` on, for limits above the bound that the message names first."""

    def checked(value: float) -> float:
        if value < lowest:
            raise ValueError(f"expected a number from {lowest:g} on")
        return value

    return Apply(checked)


def below(limit: float) -> Apply:
    """Return the constraint of a number below `limit`, for limits under the bound that the message names first."""

    def checked(value: float) -> float:
        if value >= limit:
            raise ValueError(f"expected a number below {limit:g}")
        return value

    return Apply(checked)


def _even(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if len(values) % 2:
        raise ValueError("expected an even number of them: others shift the images")
    return values


def _average(value: float) -> float:
    if value >= 1 and value.is_integer():
        return int(value)
    if not 0.01 <= value <= 0.28:
        raise ValueError("expected a whole number of images, or a relative standard deviation from 0.01 to 0.28")
    return value


def power_of_two(least: int, most: int) -> Apply:
    """Return the constraint of a whole number that is a power of two in a range."""

    def checked(value: int) -> int:
        if not least <= value <= most or value & (value - 1):
            raise ValueError(f"expected a power of two from {least} to {most}")
        return value

    return Apply(checked)


Text = Annotated[str, Constraint(min_length=1, max_length=2_000)]
Name = Annotated[str, Constraint(pattern=_NAME)]
RunName = Annotated[str, Constraint(pattern=_RUN, max_length=200)]
Digest = Annotated[str, Constraint(pattern=_DIGEST)]
SeedBlock = Annotated[str, Constraint(pattern=_SEED_BLOCK)]
Policy = Annotated[str, Constraint(pattern=_POLICY)]
MetricValue = Annotated[str, Constraint(pattern=_METRIC_VALUE)]
SiteName = Annotated[str, Constraint(pattern=_SITE_NAME, max_length=200)]
GpuType = Annotated[str, Constraint(pattern=_GPU_TYPE, max_length=100)]
# Bounds are far beyond what is ever useful: they refuse slips of the pen before they cost a job.
Count = Annotated[int, Constraint(gt=0, le=10**12)]
SmallCount = Annotated[int, Constraint(gt=0, le=10_000)]  # of steps, machines, repetitions
Few = Annotated[int, Constraint(gt=0, le=64)]  # of blocks, and factors on widths
Width = Annotated[int, Constraint(gt=0, le=8_192)]  # channels of a layer
Classes = Annotated[int, Constraint(gt=0, le=1_000_000)]
Factors = Annotated[tuple[Few, ...], Constraint(min_length=1, max_length=12)]  # on widths, by level
Resolutions = Annotated[tuple[Count, ...], Constraint(max_length=12)]
Taps = Annotated[tuple[Few, ...], Constraint(min_length=2, max_length=8), Apply(_even)]  # of a filter
Natural = Annotated[int, Constraint(ge=0, le=10**12)]
Seed = Annotated[int, Constraint(ge=0, lt=2**32)]
Positive = Annotated[float, Constraint(gt=0, le=1e6), least(1e-12)]
Images = Annotated[float, Constraint(gt=0, le=1e12), least(1)]  # a half-life
RelativeStd = Annotated[float, Constraint(ge=0.01, le=0.28)]  # of an average's profile
Average = Annotated[float, Constraint(gt=0, le=1e12), Apply(_average)]  # half-life of an EMA, or such a deviation
NotNegative = Annotated[float, Constraint(ge=0, le=1e6)]
Seconds = Annotated[float, Constraint(gt=0, le=1e7), least(1e-3)]
Share = Annotated[float, Constraint(ge=0, le=1)]
ShareBelowOne = Annotated[float, Constraint(ge=0, lt=1)]
Mebibytes = Annotated[int, Constraint(gt=0, le=1_000_000)]
Pixels = Annotated[int, Constraint(ge=0, le=4_096)]
LogSigma = Annotated[float, Constraint(ge=-50, le=50)]
Resolution = Annotated[int, power_of_two(4, 4_096)]
Named = Annotated[Mapping[Name, _T], Apply(frozen)]
Weights = Annotated[Mapping[Name, Positive], Constraint(min_length=1, max_length=16)]  # of a few parts, by name
Options = Annotated[Mapping[str, Any], Apply(frozen)]


def seeds_of(text: str) -> range:
    """Return the seeds of a block "first-last", both included; none of one that runs backwards."""
    first, last = map(int, text.split("-"))
    return range(first, last + 1)
