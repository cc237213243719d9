"""The blocks `{name: d2o, ...}` of a config, checked against the signatures of the classes that they name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from onestep import plugins
from onestep._config.problems import Path, Problem, found, missing_key, not_among, not_exactly_one, unknown_key
from onestep._config.values import Name
from onestep._config.wording import worded

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Where the blocks of a family folder stand, and what their keys are beside the options of the named class.

    Attributes:
        folder: The family.
        place: Path of its blocks, "*" for any name.
        supplied: Arguments that the pipeline gives to the class, and no config.
        names: For an argument in `supplied`, the keys by one of which the config says where it comes from.
        keys: Further keys of every block, with their types.
    """

    folder: str
    place: tuple[str, ...]
    supplied: frozenset[str] = frozenset()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)


_FAMILIES = (
    _Family(
        folder="data", place=("datasets", "*"), supplied=frozenset({"source"}), names={"source": ("input",)}
    ),
    _Family(
        folder="features",
        place=("features", "*"),
        supplied=frozenset({"weights"}),
        names={"weights": ("run", "input")},
    ),
    _Family(
        folder="networks",
        place=("runs", "*", "network"),
        supplied=frozenset({"img_resolution", "img_channels", "label_dim"}),
        keys={"preconditioning": Literal["edm", "d2o"]},
    ),
    _Family(
        folder="classifiers",
        place=("runs", "*", "classifier"),
        supplied=frozenset({"resolution", "channels", "classes"}),
    ),
    _Family(folder="objectives", place=("runs", "*", "objective")),
    _Family(
        folder="discriminators",
        place=("runs", "*", "discriminator"),
        supplied=frozenset({"backbones", "classes", "seed"}),
        names={"backbones": ("backbones",)},
    ),
    _Family(folder="sampling", place=("samplers", "*")),
    _Family(folder="metrics", place=("metrics", "*"), keys={"features": Name}),
)
_REFERENCES = MappingProxyType(
    {"input": Name, "run": Name, "backbones": Annotated[tuple[Name, ...], Field(min_length=1)]}
)


class Resolved(NamedTuple):
    """A document whose blocks read `{name, options: {every option}, ...}`; those at `broken` are as they were."""

    document: Any
    problems: list[Problem]
    broken: tuple[Path, ...]


class _Key(NamedTuple):
    hint: Any
    default: Any


def resolve_components(document: Any) -> Resolved:
    """Check each component block of a plain document and fill in its defaults, in a copy."""
    document = json.loads(json.dumps(document))
    problems: list[Problem] = []
    broken: list[Path] = []
    for family in _FAMILIES:
        for path, holder in _places(document, family.place):
            block = _Block(holder[path[-1]], family=family, path=path)
            if block.problems:
                problems += block.problems
                broken.append(path)
            else:
                holder[path[-1]] = block.resolved
    return Resolved(document, problems, tuple(broken))


def _places(value: Any, place: tuple[str, ...], path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the path of each block at `place`, and the mapping that holds it."""
    if not isinstance(value, dict):
        return
    for key in list(value) if place[0] == "*" else [key for key in place[:1] if key in value]:
        if place[1:]:
            yield from _places(value[key], place[1:], (*path, key))
        elif isinstance(value[key], dict):
            yield (*path, key), value
