"""The blocks `{name: d2o, ...}` of a config, checked against the classes that they name.

The keyword-only signature of the class gives keys, types and defaults. Then the class is built, and may refuse the
options with a ValueError. Where torch is missing, as on a login node, a class is replaced by its outline
(`onestep.components`): refusals that need torch are found where torch is installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from onestep import components
from onestep.components import Parameter
from onestep.config.constraints import Classes, Constraint, Name, RunName
from onestep.config.laws import Law
from onestep.config.messages import Place, Problem, exactly_one, not_among, one_line
from onestep.config.schema import worded


class _Family(NamedTuple):
    contract: tuple[str, ...] = ()  # members that its classes must have
    supplied: tuple[str, ...] = ()  # arguments that the pipeline gives to the class
    source: str = ""  # a further one, of classes that have it, which the config names by one of the keys `named_by`
    named_by: Mapping[str, Any] = MappingProxyType({})
    keys: Mapping[str, Parameter] = MappingProxyType({})  # further keys of every block


_FAMILIES: Mapping[str, _Family] = {
    "data": _Family(
        contract=("__len__", "__getitem__"),
        supplied=("codec_weights",),
        source="source",
        named_by={"input": Name},
        keys={
            "references": Parameter(hint=dict[Name, Name] | None, default=None),
            "classes": Parameter(hint=Classes | None, default=None),
        },
    ),
    "features": _Family(contract=("__call__",), source="weights", named_by={"run": RunName, "input": Name}),
    "networks": _Family(
        supplied=("img_resolution", "img_channels", "label_dim"),
        keys={"preconditioning": Parameter(hint=Law, default="edm")},
    ),
    "classifiers": _Family(supplied=("resolution", "channels", "classes")),
    "objectives": _Family(contract=("publishes", "networks", "phases")),
    "distances": _Family(contract=("networks", "__call__")),
    "discriminators": _Family(
        supplied=("embedding", "classes", "seed", "rank", "img_resolution", "img_channels", "teacher", "map_shapes"),
        source="backbones",
        named_by={"backbones": Annotated[tuple[Name, ...], Constraint(min_length=1)]},
        keys={"class_embeddings": Parameter(hint=Name | None, default=None)},
    ),
    "ratios": _Family(supplied=("network", "teacher", "img_resolution", "img_channels", "label_dim")),
    "autoencoders": _Family(contract=("encode", "decode"), source="weights", named_by={"input": Name}),
    "sampling": _Family(contract=("nfe", "__call__")),
    "metrics": _Family(contract=("inputs", "values", "__call__")),
    "studies": _Family(
        contract=("question", "rule", "choices", "observes", "conclude"),
        keys={"on_request": Parameter(hint=bool, default=False)},
    ),
}
_FAMILY_AT: Mapping[str, str | None] = {
    "datasets.*": "data",
    "features.*": "features",
    "runs.*.network": "networks",
    "runs.*.classifier": "classifiers",
    "runs.*.codec": "autoencoders",
    "teachers.*.codec": "autoencoders",
    "runs.*.objective": "objectives",
    "runs.*.discriminator": "discriminators",
    "samplers.*": "sampling",
    "metrics.*": "metrics",
    "studies.*": "studies",
    "runs.*.networks.*": None,
}
"""The families of the blocks by place, "*" for any name; that of further networks is determined by the objective."""

_FEATURE_INPUTS = {"generated", "real", "probabilities"}

# By family and class, because building one takes longer than checking a block with it.
_adapters: dict[tuple[str, Any], TypeAdapter[Any]] = {}


class _Refused(Exception):
    def __init__(self, *problems: Problem) -> None:
        self.problems = problems


def resolve_components(document: Any) -> tuple[list[Problem], list[Place], dict[Place, Any]]:
    """Check each component block of a plain document and convert it in place to `{name, options: {every option}, ...}`.

    Returns:
        What is wrong; the places of the blocks that have problems, which stay as they were; and the components by
        place, without those that need files, None if torch is needed and missing.
    """
    problems: list[Problem] = []
    broken: list[Place] = []
    built: dict[Place, Any] = {}
    for pattern, folder in _FAMILY_AT.items():
        for place, holder in _blocks(document, pattern.split(".")):
            key = str(place[-1])
            try:
                if folder is None:
                    holder[key] = _resolved_role(holder[key], built.get((*place[:2], "objective")), place=place)
                else:
                    holder[key], built[place] = _resolved(holder[key], folder=folder, place=place)
            except _Refused as refused:
                problems += refused.problems
                broken.append(place)
    return problems, broken, built


class Origin(NamedTuple):
    """The origin of a network of an objective: the class `kind` of `onestep.objectives` with its attributes."""

    kind: str
    family: str | None
    role: str | None
    name: str | None
    shapes: Mapping[str, tuple[int, ...]] | None  # of a feature network that is tensors alone
    pooled: bool | None  # of a feature network that makes vectors
    resolution: int | None  # of its images
    maps_of: str | None  # of a discriminator of that role's inner maps
    frozen: bool | None  # of a copy of the teacher


def networks_of(objective: Any) -> dict[str, Origin]:
    """Return the networks that an objective declares, by role; empty if it needs torch and torch is missing."""
    declared = {} if objective is None else objective.networks()
    return {
        role: Origin(type(each).__name__, *(getattr(each, name, None) for name in Origin._fields[1:]))
        for role, each in declared.items()
    }


def _blocks(value: Any, pattern: list[str], place: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the place of each block that matches `pattern`, and the mapping that holds it."""
    if not isinstance(value, dict):
        return
    for key in [key for key in value if pattern[0] in ("*", key)]:
        if pattern[1:]:
            yield from _blocks(value[key], pattern[1:], (*place, key))
        elif isinstance(value[key], dict):
            yield (*place, key), value


def _resolved_role(block: dict[str, Any], objective: Any, *, place: Place) -> dict[str, Any]:
    if objective is None:
        return {"name": block.pop("name", ""), "options": block}
    fresh = {role: each.family for role, each in networks_of(objective).items() if each.family in _FAMILIES}
    folder = fresh.get(str(place[-1]))
    if folder is None:
        raise _Refused(Problem(place, not_among(place[-1], fresh, of="roles that the objective trains from scratch")))
    resolved, _ = _resolved(block, folder=folder, place=place)
    return {"name": resolved.pop("name"), "options": {**resolved.pop("options"), **resolved}}


def _resolved(block: dict[str, Any], *, folder: str, place: Place) -> tuple[dict[str, Any], Any]:
    """Return a block in its resolved form, and its component, None for one that needs files."""
    family, name = _FAMILIES[folder], block.get("name")
    try:
        component, parameters = _class_of(block, folder=folder)
    except (ValueError, ImportError) as error:
        raise _Refused(Problem((*place, "name"), one_line(error))) from error
    options = {key: each for key, each in parameters.items() if key not in (family.source, *family.supplied)}
    sources = family.named_by if family.source in parameters else {}
    if getattr(component, "prepared_source", False):
        sources = {"dataset": Name}
    others = _further_keys(component, folder=folder, sources=sources)
    values, problems = _values(block, keys=others | options, of=(folder, component), place=place)
    if len(sources) > 1 and (wrong := exactly_one(block, *sources)):
        problems.append(Problem(place, wrong))
    if problems:
        raise _Refused(*problems)
    chosen = {key: values.pop(key) for key in options if key in values}
    for key, inner in getattr(component, "parts", {}).items():
        if isinstance(chosen.get(key), dict):
            part, _ = _resolved(chosen[key], folder=inner, place=(*place, key))
            chosen[key] = {**{k: v for k, v in part.items() if k != "options"}, **part["options"]}
    built = None
    if not family.source and not family.supplied:
        try:
            built = components.build_outline(folder, {"name": name, **chosen})
        except ValueError as error:
            raise _Refused(Problem(place, one_line(error))) from error
    return to_jsonable_python({"name": name, **values, "options": chosen}), built


def _further_keys(component: Any, *, folder: str, sources: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return the keys of a block that are no options of its class; of several `sources` it has one."""
    others = {key: Parameter(hint=hint) for key, hint in sources.items()}
    if len(sources) > 1:
        others = {key: Parameter(hint=hint | None, default=None) for key, hint in sources.items()}
    others |= _FAMILIES[folder].keys
    by_network = folder == "metrics" and getattr(component, "by_network", False)
    if by_network:
        others["networks"] = Parameter(hint=Annotated[tuple[Name, ...], Constraint(min_length=1)])
    elif folder == "metrics" and _FEATURE_INPUTS.intersection(component.inputs):
        others["features"] = Parameter(hint=Name)
    if folder == "metrics" and "held_out" in component.inputs:
        others["held_out"] = Parameter(hint=Name)
    if folder == "metrics" and "real" in component.inputs and not by_network:
        others["against"] = Parameter(hint=dict[str, Any] | None, default=None)  # checked as `AgainstBlock` later
    return others


def _class_of(block: Mapping[str, Any], *, folder: str) -> tuple[Any, Mapping[str, Parameter]]:
    """Return the class that a block names and its parameters; raise where it is none, or breaks its contract."""
    name, choices = block.get("name"), components.choices(folder)
    if "name" not in block:
        raise ValueError(f"missing, expected one of the files of {folder}/: {', '.join(choices)}, or module:Class")
    if not (isinstance(name, str) and (":" in name or name in choices)):
        raise ValueError(not_among(name, choices, of=f"files of {folder}/"))
    parameters, component = components.describe(folder, name).parameters, components.outline(folder, name)
    absent = [each for each in _FAMILIES[folder].contract if not hasattr(component, each)]
    if absent and not components.is_outline(component):
        raise ValueError(f"{name} has no {absent[0]!r}; the contract is in onestep/{folder}/__init__.py")
    return component, parameters


def _values(
    block: Mapping[str, Any], *, keys: Mapping[str, Parameter], of: tuple[str, Any], place: Place
) -> tuple[dict[str, Any], list[Problem]]:
    try:
        if of not in _adapters:
            _adapters[of] = _adapter(keys)
        given = _adapters[of].validate_json(json.dumps(block))
    except ValidationError as error:
        return {}, worded(error.errors(include_url=False), within=place, keys=lambda _: ["name", *keys])
    except PydanticUserError as error:
        return {}, [Problem((*place, "name"), f"{block['name']}: {one_line(error.message)}")]
    defaults = {key: each.default for key, each in keys.items() if _is_json(each.default)}
    values = defaults | given
    return {key: values[key] for key in keys if key in values}, []


def _adapter(keys: Mapping[str, Parameter]) -> TypeAdapter[Any]:
    hints = {key: each.hint if each.is_required else NotRequired[each.hint] for key, each in keys.items()}
    make: Any = TypedDict  # as a function, because the keys are not literals
    shape = make("shape", {"name": str, **hints})
    shape.__pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    return TypeAdapter(shape)


def _is_json(default: Any) -> bool:
    """Return whether JSON has a default, other than none; infinity, which it has not, is left to the class."""
    try:
        return default is not None and bool(json.dumps(to_jsonable_python(default), allow_nan=False))
    except ValueError:
        return False
