"""The blocks `{name: d2o, ...}` of a config, checked against the classes that they name.

The keyword-only signature of the class gives keys, types and defaults. Then the class is built, and may refuse the
options with a ValueError. Where torch is missing, as on a login node, a class is replaced by its outline
(`onestep.components`): refusals that need torch are found where torch is installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from onestep import components
from onestep.components import Parameter
from onestep.config.constraints import Constraint, Name, RunName
from onestep.config.messages import Place, Problem, exactly_one, not_among, one_line
from onestep.config.schema import worded


@dataclass(frozen=True, kw_only=True)
class _Family:
    """The keys of a family's blocks, beside the options of the named class.

    Attributes:
        contract: Members that its classes must have.
        supplied: Arguments that the pipeline gives to the class.
        sources: By argument in `supplied`, the keys by one of which the config names its source.
        keys: Further keys of every block.
    """

    contract: tuple[str, ...] = ()
    supplied: tuple[str, ...] = ()
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keys: Mapping[str, Parameter] = field(default_factory=dict)


_FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "data": _Family(
            contract=("__len__", "__getitem__"),
            supplied=("source",),
            sources={"source": ("input",)},
            keys={"references": Parameter(hint=dict[Name, Name] | None, default=None)},
        ),
        "features": _Family(contract=("__call__",), supplied=("weights",), sources={"weights": ("run", "input")}),
        "networks": _Family(
            supplied=("img_resolution", "img_channels", "label_dim"),
            keys={"preconditioning": Parameter(hint=Literal["edm", "d2o"])},
        ),
        "classifiers": _Family(supplied=("resolution", "channels", "classes")),
        "objectives": _Family(contract=("publishes", "networks", "phases")),
        "discriminators": _Family(
            supplied=("backbones", "embedding", "classes", "seed", "rank"),
            sources={"backbones": ("backbones",)},
            keys={"class_embeddings": Parameter(hint=Name | None, default=None)},
        ),
        "autoencoders": _Family(contract=("encode", "decode"), supplied=("weights",), sources={"weights": ("input",)}),
        "sampling": _Family(contract=("nfe", "__call__")),
        "metrics": _Family(contract=("inputs", "values", "__call__")),
        "studies": _Family(contract=("question", "rule", "choices", "observes", "conclude")),
    }
)
_PLACES: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("datasets", "*"), "data"),
    (("features", "*"), "features"),
    (("runs", "*", "network"), "networks"),
    (("runs", "*", "classifier"), "classifiers"),
    (("runs", "*", "codec"), "autoencoders"),
    (("runs", "*", "objective"), "objectives"),
    (("runs", "*", "discriminator"), "discriminators"),
    (("samplers", "*"), "sampling"),
    (("metrics", "*"), "metrics"),
    (("studies", "*"), "studies"),
    (("runs", "*", "networks", "*"), None),
)
"""Places of the blocks, "*" for any name, with the family of each; of further networks the objective determines it."""

_SOURCES: Mapping[str, Any] = MappingProxyType(
    {"input": Name, "run": RunName, "backbones": Annotated[tuple[Name, ...], Constraint(min_length=1)]}
)
_FEATURE_INPUTS = {"generated", "real", "probabilities"}


class Resolved(NamedTuple):
    """A document whose blocks read `{name, options: {every option}, ...}`, and what is wrong with them.

    Attributes:
        broken: Places of the blocks that have problems, which are as they were.
        built: The components by place, without those that need files; None if torch is needed and missing.
    """

    document: Any
    problems: list[Problem]
    broken: tuple[Place, ...]
    built: Mapping[Place, Any]


class _Checked(NamedTuple):
    block: dict[str, Any]  # in its resolved form; as it was where there are problems
    problems: list[Problem]
    component: Any = None


def resolve_components(document: Any) -> Resolved:
    """Check each component block of a plain document and fill in its defaults, in place."""
    problems: list[Problem] = []
    broken: list[Place] = []
    built: dict[Place, Any] = {}
    for pattern, folder in _PLACES:
        for place, holder in _blocks(document, pattern):
            block = holder[str(place[-1])]
            if folder is None:
                checked = _resolve_role(block, objective=built.get((*place[:2], "objective")), place=place)
            else:
                checked = _resolve(block, folder=folder, place=place)
            holder[str(place[-1])], built[place] = checked.block, checked.component
            problems += checked.problems
            broken += [place] if checked.problems else []
    return Resolved(document, problems, tuple(broken), built)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of a network of an objective: the class `kind` of `onestep.objectives` with its attributes."""

    kind: str
    family: str | None = None
    role: str | None = None
    name: str | None = None


def networks_of(objective: Any) -> dict[str, Origin]:
    """Return the networks that an objective declares, by role; empty if it needs torch and torch is missing."""
    if objective is None:
        return {}
    fields = ("family", "role", "name")
    return {
        role: Origin(kind=type(each).__name__, **{field: getattr(each, field, None) for field in fields})
        for role, each in objective.networks().items()
    }


def _resolve_role(block: dict[str, Any], *, objective: Any, place: Place) -> _Checked:
    if objective is None:
        return _Checked({"name": block.pop("name", ""), "options": block}, [])
    fresh = {role: each.family for role, each in networks_of(objective).items() if each.family in _FAMILIES}
    folder = fresh.get(str(place[-1]))
    if folder is None:
        wrong = not_among(place[-1], fresh, of="roles that the objective trains from scratch")
        return _Checked(block, [Problem(place, wrong)])
    checked = _resolve(block, folder=folder, place=place)
    if checked.problems:
        return checked
    name, options = checked.block.pop("name"), checked.block.pop("options")
    return _Checked({"name": name, "options": {**options, **checked.block}}, [])


def _blocks(value: Any, pattern: tuple[str, ...], place: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the place of each block that matches `pattern`, and the mapping that holds it."""
    if not isinstance(value, dict):
        return
    for key in [key for key in value if pattern[0] in ("*", key)]:
        if pattern[1:]:
            yield from _blocks(value[key], pattern[1:], (*place, key))
        elif isinstance(value[key], dict):
            yield (*place, key), value


def _resolve(block: dict[str, Any], *, folder: str, place: Place) -> _Checked:
    family, name = _FAMILIES[folder], block.get("name")
    try:
        component, parameters = _class_of(block, folder=folder)
    except (ValueError, ImportError) as error:
        return _Checked(block, [Problem((*place, "name"), one_line(error))])
    options = {key: each for key, each in parameters.items() if key not in family.supplied}
    sources = [keys for argument, keys in family.sources.items() if argument in parameters]
    others: dict[str, Parameter] = {}
    for keys in sources:  # a single one is required, one of several is not
        one = len(keys) == 1
        others |= {
            key: Parameter(hint=_SOURCES[key]) if one else Parameter(hint=_SOURCES[key] | None, default=None)
            for key in keys
        }
    others |= family.keys
    if folder == "metrics" and _FEATURE_INPUTS.intersection(component.inputs):
        others["features"] = Parameter(hint=Name)
    values, problems = _values(block, keys=others | options, place=place)
    for keys in sources:
        if len(keys) > 1 and (wrong := exactly_one(block, *keys)):
            problems.append(Problem(place, wrong))
    chosen = {key: values.pop(key) for key in options if key in values}
    built = None
    if not problems and not family.supplied:
        try:
            built = components.build_outline(folder, {"name": name, **chosen})
        except ValueError as error:
            problems = [Problem(place, one_line(error))]
    if problems:
        return _Checked(block, problems)
    return _Checked(to_jsonable_python({"name": name, **values, "options": chosen}), [], built)


def _class_of(block: Mapping[str, Any], *, folder: str) -> tuple[Any, Mapping[str, Parameter]]:
    """Return the class that a block names and its parameters; raise where it is none, or breaks its contract."""
    name, choices = block.get("name"), components.choices(folder)
    if "name" not in block:
        raise ValueError(f"missing, expected one of the files of {folder}/: {', '.join(choices)}, or module:Class")
    if not (isinstance(name, str) and (":" in name or components.is_choice(folder, name))):
        raise ValueError(not_among(name, choices, of=f"files of {folder}/"))
    parameters, component = components.describe(folder, name).parameters, components.outline(folder, name)
    absent = [each for each in _FAMILIES[folder].contract if not hasattr(component, each)]
    if absent and not components.is_outline(component):
        raise ValueError(f"{name} has no {absent[0]!r}; the contract is in onestep/{folder}/__init__.py")
    return component, parameters


def _values(
    block: Mapping[str, Any], *, keys: Mapping[str, Parameter], place: Place
) -> tuple[dict[str, Any], list[Problem]]:
    hints = {key: each.hint if each.is_required else NotRequired[each.hint] for key, each in keys.items()}
    # As a function, because the keys are not literals.
    make: Any = TypedDict
    shape = make("shape", {"name": str, **hints})
    shape.__pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    try:
        given = TypeAdapter(shape).validate_json(json.dumps(block))
    except ValidationError as error:
        return {}, worded(error.errors(include_url=False), within=place, keys=lambda _: ["name", *keys])
    except PydanticUserError as error:
        return {}, [Problem((*place, "name"), f"{block['name']}: {one_line(error.message)}")]
    defaults = {key: each.default for key, each in keys.items() if _is_json(each.default)}
    return {key: given[key] if key in given else defaults[key] for key in keys if key in given or key in defaults}, []


def _is_json(default: Any) -> bool:
    """Return whether JSON has a default, other than none; infinity, which it has not, is left to the class."""
    try:
        return default is not None and bool(json.dumps(to_jsonable_python(default), allow_nan=False))
    except ValueError:
        return False
