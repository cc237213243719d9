"""The blocks `{name: d2o, ...}` of a config, checked against the signatures of the classes that they name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from onestep import plugins
from onestep.config.constraints import Name
from onestep.config.messages import Place, Problem, exactly_one, missing_key, not_among, unknown_key
from onestep.config.wording import worded

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Where the blocks of a family folder stand, and what their keys are beside the options of the named class.

    Attributes:
        folder: The family.
        place: Where its blocks stand, "*" for any name.
        supplied: Arguments that the pipeline gives to the class, and no config.
        sources: For an argument in `supplied`, the keys by one of which the config says where it comes from.
        keys: Further keys of every block, with their types.
        optional: Further keys that a block may have.
    """

    folder: str
    place: tuple[str, ...]
    supplied: frozenset[str] = frozenset()
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    optional: Mapping[str, Any] = field(default_factory=dict)


_FAMILIES = (
    _Family(
        folder="data",
        place=("datasets", "*"),
        supplied=frozenset({"source"}),
        sources={"source": ("input",)},
        optional={"references": dict[Name, Name] | None},
    ),
    _Family(
        folder="features",
        place=("features", "*"),
        supplied=frozenset({"weights"}),
        sources={"weights": ("run", "input")},
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
        supplied=frozenset({"backbones", "embedding", "classes", "seed", "rank"}),
        sources={"backbones": ("backbones",)},
        optional={"class_embeddings": Name | None},
    ),
    _Family(folder="sampling", place=("samplers", "*")),
    _Family(folder="metrics", place=("metrics", "*"), keys={"features": Name}),
)
_SOURCES = MappingProxyType({"input": Name, "run": Name, "backbones": Annotated[tuple[Name, ...], Field(min_length=1)]})


class Resolved(NamedTuple):
    """A document whose blocks read `{name, options: {every option}, ...}`; those at `broken` are as they were."""

    document: Any
    problems: list[Problem]
    broken: tuple[Place, ...]


class _Key(NamedTuple):
    """A key that a block may have; `default` is `_REQUIRED` where it must."""

    hint: Any
    default: Any


def resolve_components(document: Any) -> Resolved:
    """Check each component block of a plain document and fill in its defaults, in a copy."""
    document = json.loads(json.dumps(document))
    problems: list[Problem] = []
    broken: list[Place] = []
    for family in _FAMILIES:
        for place, holder in _blocks(document, family.place):
            block, wrong = _resolve(holder[place[-1]], family=family, place=place)
            holder[place[-1]] = block
            if wrong:
                problems += wrong
                broken.append(place)
    return Resolved(document, problems, tuple(broken))


def _blocks(value: Any, pattern: tuple[str, ...], place: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the place of each block that matches `pattern`, and the mapping that holds it."""
    if not isinstance(value, dict):
        return
    for key in [key for key in value if pattern[0] in ("*", key)]:
        if pattern[1:]:
            yield from _blocks(value[key], pattern[1:], (*place, key))
        elif isinstance(value[key], dict):
            yield (*place, key), value


def _resolve(block: dict[str, Any], *, family: _Family, place: Place) -> tuple[dict[str, Any], list[Problem]]:
    """Return a block in its resolved form; or as it is, with all that is wrong with it."""
    misnamed = _misnamed(block, folder=family.folder)
    if misnamed is not None:
        return block, [Problem((*place, "name"), misnamed)]
    component = plugins.load(family.folder, block["name"])
    parameters = inspect.signature(component).parameters
    options = _options(component, but=family.supplied)
    sources = [keys for argument, keys in family.sources.items() if argument in parameters]
    others = {key: _Key(hint, _REQUIRED) for key, hint in family.keys.items()} | _source_keys(sources)
    others |= {key: _Key(hint, None) for key, hint in family.optional.items()}
    values, problems = _values(block, keys=others | options, place=place)
    problems += _wrong_sources(block, sources, place=place)
    chosen = {key: values.pop(key) for key in options if key in values}
    if not problems and not family.supplied:
        problems = _refused(component, chosen, place=place)
    if problems:
        return block, problems
    return to_jsonable_python({"name": block["name"], **values, "options": chosen}), []


def _misnamed(block: Mapping[str, Any], *, folder: str) -> str | None:
    """Return what is wrong with a block's name; None where all is well."""
    choices = plugins.choices(folder)
    if "name" not in block:
        return f"missing, expected one of the files of {folder}/: {', '.join(choices)}"
    return None if block["name"] in choices else not_among(block["name"], choices, of=f"files of {folder}/")


def _options(component: Any, *, but: frozenset[str]) -> dict[str, _Key]:
    """Return the keyword arguments of a class that the config gives."""
    hints = get_type_hints(component.__init__)
    parameters = inspect.signature(component).parameters
    return {name: _Key(hints[name], each.default) for name, each in parameters.items() if name not in but}


def _source_keys(sources: Iterable[tuple[str, ...]]) -> dict[str, _Key]:
    """Return the keys that name sources: a lone one must be there, one of several need not."""
    keys = {}
    for names in sources:
        if len(names) == 1:
            keys[names[0]] = _Key(_SOURCES[names[0]], _REQUIRED)
        else:
            keys |= {name: _Key(_SOURCES[name] | None, None) for name in names}
    return keys


def _wrong_sources(block: Mapping[str, Any], sources: Iterable[tuple[str, ...]], *, place: Place) -> Iterator[Problem]:
    for names in sources:
        wrong = exactly_one(names, given=[name for name in names if block.get(name) is not None])
        if wrong and len(names) > 1:
            yield Problem(place, wrong)


def _values(
    block: Mapping[str, Any], *, keys: Mapping[str, _Key], place: Place
) -> tuple[dict[str, Any], list[Problem]]:
    """Return what a block says, defaults filled in, and what is wrong with it."""
    allowed = ["name", *keys]
    problems = [Problem((*place, key), unknown_key(key, allowed)) for key in block if key not in allowed]
    values = {}
    for name, key in keys.items():
        if name in block:
            try:
                values[name] = TypeAdapter(key.hint, config=_STRICT).validate_json(json.dumps(block[name]))
            except ValidationError as error:
                problems += worded(error.errors(include_url=False), within=(*place, name))
        elif key.default is _REQUIRED:
            problems.append(Problem((*place, name), missing_key()))
        elif key.default is not None and _is_json(key.default):
            values[name] = key.default
    return values, problems


def _is_json(default: Any) -> bool:
    """Whether JSON has a word for a default; what it has none for, infinity, is left to the class."""
    try:
        json.dumps(to_jsonable_python(default), allow_nan=False)
    except ValueError:
        return False
    return True


def _refused(component: Any, options: Mapping[str, Any], *, place: Place) -> list[Problem]:
    """Return what a class itself says against its options."""
    try:
        component(**options)
    except ValueError as error:
        return [Problem(place, " ".join(str(error).split()))]
    return []
