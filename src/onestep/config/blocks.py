"""The blocks `{name: d2o, ...}` of a config, checked against the classes that they name.

The keyword-only signature of the class gives keys, types and defaults. Then the class is built, and may refuse the
options with a ValueError. Where torch is missing, as on a login node, a class is replaced by its outline
(`onestep.components`): refusals that need torch are found where torch is installed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from onestep import components
from onestep.config.constraints import Constraint, Name, RunName
from onestep.config.messages import Place, Problem, exactly_one, not_among, one_line
from onestep.config.schema import worded

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, kw_only=True)
class _Family:
    """The keys of a family's blocks, beside the options of the named class.

    Attributes:
        contract: Members that its classes must have.
        supplied: Arguments that the pipeline gives to the class.
        sources: By argument in `supplied`, the keys by one of which the config names its source.
        keys: Further keys of every block, with their types.
        optional: Further keys that a block may have.
    """

    contract: tuple[str, ...] = ()
    supplied: frozenset[str] = frozenset()
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    optional: Mapping[str, Any] = field(default_factory=dict)


_FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "data": _Family(
            contract=("__len__", "__getitem__"),
            supplied=frozenset({"source"}),
            sources={"source": ("input",)},
            optional={"references": dict[Name, Name] | None},
        ),
        "features": _Family(
            contract=("__call__",), supplied=frozenset({"weights"}), sources={"weights": ("run", "input")}
        ),
        "networks": _Family(
            supplied=frozenset({"img_resolution", "img_channels", "label_dim"}),
            keys={"preconditioning": Literal["edm", "d2o"]},
        ),
        "classifiers": _Family(supplied=frozenset({"resolution", "channels", "classes"})),
        "objectives": _Family(contract=("publishes", "networks", "phases")),
        "discriminators": _Family(
            supplied=frozenset({"backbones", "embedding", "classes", "seed", "rank"}),
            sources={"backbones": ("backbones",)},
            optional={"class_embeddings": Name | None},
        ),
        "autoencoders": _Family(
            contract=("encode", "decode"), supplied=frozenset({"weights"}), sources={"weights": ("input",)}
        ),
        "sampling": _Family(contract=("nfe", "__call__")),
        "metrics": _Family(contract=("inputs", "values", "__call__")),
        "studies": _Family(contract=("question", "rule", "choices", "observes", "conclude")),
    }
)
_PLACES: tuple[tuple[tuple[str, ...], str], ...] = (
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
)
"""Places of the blocks, "*" for any name, with the family of each."""

_ROLES = ("runs", "*", "networks", "*")
"""Places of further networks of objectives; the objective determines the family of each role."""

_SOURCES: Mapping[str, Any] = MappingProxyType(
    {"input": Name, "run": RunName, "backbones": Annotated[tuple[Name, ...], Constraint(min_length=1)]}
)
_FEATURE_INPUTS = frozenset({"generated", "real", "probabilities"})


class Resolved(NamedTuple):
    """A document whose blocks read `{name, options: {every option}, ...}`.

    Attributes:
        document: The document.
        problems: What is wrong with its blocks.
        broken: Places of the blocks that have problems, which are as they were.
        built: The components by place, but for those that need files; None where torch is missing for that.
    """

    document: Any
    problems: list[Problem]
    broken: tuple[Place, ...]
    built: Mapping[Place, Any]


class _Key(NamedTuple):
    """A key that a block may have; `default` is `_REQUIRED` where it must."""

    hint: Any
    default: Any


class _Checked(NamedTuple):
    """A block in its resolved form, or as it was with all that is wrong with it, and the component."""

    block: dict[str, Any]
    problems: list[Problem]
    component: Any = None


def resolve_components(document: Any) -> Resolved:
    """Check each component block of a plain document and fill in its defaults, in place."""
    problems: list[Problem] = []
    broken: list[Place] = []
    built: dict[Place, Any] = {}
    for pattern, folder in _PLACES:
        for place, holder in _blocks(document, pattern):
            key = str(place[-1])
            checked = _resolve(holder[key], folder=folder, place=place)
            holder[key], built[place] = checked.block, checked.component
            problems += checked.problems
            broken += [place] if checked.problems else []
    for place, holder in _blocks(document, _ROLES):
        key = str(place[-1])
        checked = _resolve_role(holder[key], objective=built.get((*place[:2], "objective")), place=place)
        holder[key] = checked.block
        problems += checked.problems
        broken += [place] if checked.problems else []
    return Resolved(document, problems, tuple(broken), built)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of a network of an objective, as `onestep.objectives` declares it.

    Attributes:
        kind: Name of its class: Pretrained, Fresh, TeacherCopy, AverageOf or FeatureNetwork.
        family: Family of a network that the objective trains from scratch.
        role: Role of the network that is averaged.
        name: Entry of `backbones` of a feature network.
    """

    kind: str
    family: str | None = None
    role: str | None = None
    name: str | None = None


def networks_of(objective: Any) -> dict[str, Origin]:
    """Return the networks that an objective declares, by role; none where torch is missing to build it."""
    if objective is None:
        return {}
    fields = ("family", "role", "name")
    return {
        role: Origin(kind=type(each).__name__, **{field: getattr(each, field, None) for field in fields})
        for role, each in objective.networks().items()
    }


def _resolve_role(block: dict[str, Any], *, objective: Any, place: Place) -> _Checked:
    """Check the block of a further network of an objective."""
    if objective is None:
        return _Checked({"name": block.pop("name", ""), "options": block}, [])
    fresh = {role: each.family for role, each in networks_of(objective).items() if each.family in _FAMILIES}
    role = str(place[-1])
    if (folder := fresh.get(role)) is None:
        return _Checked(
            block, [Problem(place, not_among(role, fresh, of="roles that the objective trains from scratch"))]
        )
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
    """Return a block in its resolved form; or as it is, with all that is wrong with it."""
    family = _FAMILIES[folder]
    if (wrong := _misnamed(block, folder=folder)) is not None:
        return _Checked(block, [Problem((*place, "name"), wrong)])
    try:
        described = components.describe(folder, block["name"])
        component = components.outline(folder, block["name"])
    except (ValueError, ImportError) as error:
        return _Checked(block, [Problem((*place, "name"), one_line(error))])
    absent = [each for each in family.contract if not hasattr(component, each)]
    if absent and not components.is_outline(component):
        wrong = f"{block['name']} has no {absent[0]!r}; the contract is in onestep/{folder}/__init__.py"
        return _Checked(block, [Problem((*place, "name"), wrong)])
    parameters = described.parameters
    options = {key: _Key(each.hint, each.default) for key, each in parameters.items() if key not in family.supplied}
    sources = [keys for argument, keys in family.sources.items() if argument in parameters]
    others = {key: _Key(hint, _REQUIRED) for key, hint in family.keys.items()} | _source_keys(sources)
    others |= {key: _Key(hint, None) for key, hint in family.optional.items()}
    if folder == "metrics":
        others |= _feature_keys(component)
    values, problems = _values(block, keys=others | options, place=place)
    problems += _wrong_sources(block, sources, place=place)
    chosen = {key: values.pop(key) for key in options if key in values}
    built = None
    if not problems and not family.supplied:
        try:
            built = components.build_outline(folder, {"name": block["name"], **chosen})
        except ValueError as error:
            problems = [Problem(place, one_line(error))]
    if problems:
        return _Checked(block, problems)
    return _Checked(to_jsonable_python({"name": block["name"], **values, "options": chosen}), [], built)


def _misnamed(block: Mapping[str, Any], *, folder: str) -> str | None:
    """Return what is wrong with a block's name; None for a choice of the family or a class from outside."""
    name = block.get("name")
    if "name" not in block:
        return (
            f"missing, expected one of the files of {folder}/: {', '.join(components.choices(folder))}, or module:Class"
        )
    if isinstance(name, str) and (":" in name or components.is_choice(folder, name)):
        return None
    return not_among(name, components.choices(folder), of=f"files of {folder}/")


def _feature_keys(metric: Any) -> dict[str, _Key]:
    """Return the key `features`, for metrics whose inputs a feature extractor computes."""
    return {"features": _Key(Name, _REQUIRED)} if _FEATURE_INPUTS.intersection(metric.inputs) else {}


def _source_keys(sources: Iterable[tuple[str, ...]]) -> dict[str, _Key]:
    """Return the keys that name sources: a single one is required, one of several is not."""
    keys: dict[str, _Key] = {}
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
    """Return the values of a block with defaults filled in, and what is wrong with it."""
    hints = {key: each.hint if each.default is _REQUIRED else NotRequired[each.hint] for key, each in keys.items()}
    # As a function, because the keys are not literals.
    make: Any = TypedDict
    shape = make("shape", {"name": str, **hints})
    shape.__pydantic_config__ = _STRICT
    try:
        given = TypeAdapter(shape).validate_json(json.dumps(block))
    except ValidationError as error:
        return {}, worded(error.errors(include_url=False), within=place, keys=lambda _: ["name", *keys])
    except PydanticUserError as error:
        return {}, [Problem((*place, "name"), f"{block['name']}: {one_line(error.message)}")]
    values = {}
    for name, key in keys.items():
        if name in given:
            values[name] = given[name]
        elif key.default is not None and _is_json(key.default):
            values[name] = key.default
    return values, []


def _is_json(default: Any) -> bool:
    """Return whether a default can be written as JSON; infinity, which cannot, is left to the class."""
    try:
        json.dumps(to_jsonable_python(default), allow_nan=False)
    except ValueError:
        return False
    return True
