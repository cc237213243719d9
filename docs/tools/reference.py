"""Generates the reference of config.yaml and of the command line, as Markdown, from the package itself.

Keys, types and defaults are those of the dataclasses and constructors that check a config; their meaning and source are
the comments beside the fields and the `Attributes:` of the docstrings. Verbs are those of `onestep --help`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from onestep import cli, components
from onestep.config.constraints import EXPECTED_BY_PATTERN, Constraint, Name, RunName
from onestep.config.run import key_of
from onestep.config.sections import Experiment

FAMILIES = {
    "data": "datasets.NAME",
    "features": "features.NAME",
    "networks": "runs.NAME.network",
    "classifiers": "runs.NAME.classifier",
    "autoencoders": "runs.NAME.codec",
    "objectives": "runs.NAME.objective",
    "discriminators": "runs.NAME.discriminator",
    "ratios": "runs.NAME.networks.ratio",
    "augmentations": "the key augment of an objective",
    "distances": "the key distance of an objective",
    "sampling": "samplers.NAME",
    "metrics": "metrics.NAME",
    "studies": "studies.NAME",
}
"""The families of components, and the place of their blocks in config.yaml."""

_UNITS = (
    (r"images|snapshot_every|snapshots|half_life|warmup|decay_from|others|ema|batch|split_size", "images"),
    (r".*_seconds", "seconds"),
    (r"hours", "hours"),
    (r".*_gib", "GiB"),
    (r".*_mib", "MiB"),
    (r"size", "bytes"),
    (r"(img_)?resolution|attn_resolutions|shift", "pixels"),
    (r"sigma.*|.*_sigma", "noise level"),
)
_NAMES = {Name.__metadata__[0].limits["pattern"]: "(a name)", RunName.__metadata__[0].limits["pattern"]: "(a run)"}
_ORIGIN = re.compile(r"arXiv:\s?(\d{4}\.\d{4,5})|\b(\d{4}\.\d{5})\b")
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):\s*$", re.MULTILINE)


class Key(NamedTuple):
    """A key of a block."""

    name: str
    kind: str  # in words
    default: str  # empty for a required key
    unit: str
    meaning: str
    source: str


def config_reference() -> str:
    """Return the page with every section, every key, and every choice of every family with its options."""
    lines = [
        "# Every key of config.yaml",
        "",
        "Generated from the package. A key without a default is required; `null` is none. Lengths are in images;",
        "`NAME` is a name of your choice. `onestep resolve` writes a run with every default filled in.",
        "",
    ]
    for field in dataclasses.fields(Experiment):
        lines += [f"## {field.name}", ""]
        blocks = list(_blocks(get_type_hints(Experiment, include_extras=True)[field.name], field.name))
        if not blocks:
            (key,) = (each for each in keys_of(Experiment) if each.name == field.name)
            lines += _table([key])
        for place, kind in blocks:
            lines += [] if place == field.name else [f"### {place}", ""]
            lines += [*_paragraphs(inspect.getdoc(kind) or ""), "", f"Defined in `{_file(kind)}`.", ""]
            lines += _table([each for each in keys_of(kind) if each.name != "options"])
    lines += [
        "## Choices",
        "",
        "The classes that `name:` of a block may be, with their options, which are keys of the block.",
        "",
    ]
    for family, place in FAMILIES.items():
        lines += [f"### {family}: {place}", ""]
        for name in components.choices(family):
            lines += _choice(family, name)
    return "\n".join(lines) + "\n"


def command_reference() -> str:
    """Return the page with every verb of the command line, its options, their defaults and their help texts."""
    lines = ["# Every command", "", "Generated from the command line: `onestep VERB --help` shows the same.", ""]
    for group, verbs in cli.GROUPS.items():
        lines += [f"## {group}", ""]
        for name, (_, summary) in verbs.items():
            text = cli.verb_app(name).generate_docs(heading_level=3, usage_name=f"onestep {name}")
            lines += [f"### onestep {name}", "", text.partition("\n")[2].strip() or summary, ""]
    return "\n".join(lines) + "\n"


def keys_of(kind: Any) -> list[Key]:
    """Return the keys of one of the config's dataclasses, in the order of its fields."""
    hints, comments = get_type_hints(kind, include_extras=True), _comments(kind)
    found = []
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        text = comments.get(field.name, "")
        found.append(
            _key(key_of(field), hints[field.name], default, text=text, is_required=default is dataclasses.MISSING)
        )
    return found


def _key(name: str, hint: Any, default: Any, *, text: str, is_required: bool) -> Key:
    unit = next((unit for pattern, unit in _UNITS if re.fullmatch(pattern, name)), "")
    kind = _words(hint)
    return Key(
        name=name,
        kind=kind,
        default="" if is_required else _shown(default),
        unit=unit if re.search(r"number", kind) else "",
        meaning=text,
        source=", ".join(dict.fromkeys(_link(*each.groups()) for each in _ORIGIN.finditer(text))),
    )


def _link(*found: str | None) -> str:
    number = next(filter(None, found))
    return f"[{number}](https://arxiv.org/abs/{number})"


def _table(keys: list[Key]) -> list[str]:
    if not keys:
        return ["No keys.", ""]
    rows = [[f"`{key.name}`", key.kind, key.default and f"`{key.default}`", *key[3:]] for key in keys]
    headed = zip(("key", "type", "default", "unit", "meaning", "source"), *rows, strict=True)
    filled = [column for column in headed if column[0] in ("key", "type", "default") or any(column[1:])]
    head, *body = ["| " + " | ".join(_cell(each) for each in row) + " |" for row in zip(*filled, strict=True)]
    return [head, "|---" * len(filled) + "|", *body, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return "its defaults"
    if isinstance(value, Mapping):
        return str(dict(value))
    if isinstance(value, tuple):
        return str(list(value))
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:_}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _words(hint: Any) -> str:
    """Return a type in words, with its limits."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = {key: each for mark in inner[1:] if isinstance(mark, Constraint) for key, each in mark.limits.items()}
        return " ".join([_words(inner[0]), *_limits(limits)])
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(each) for each in inner if each is not type(None))
    if origin is tuple:
        return f"list of: {_words(inner[0])}" if inner else "list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping to: {_words(inner[1])}" if inner and inner[1] is not Any else "mapping"
    if isinstance(origin, type):
        return f"list of: {_words(inner[0])}"
    if dataclasses.is_dataclass(hint):
        return "block"
    plain = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Any: "any"}
    return plain.get(hint, getattr(hint, "__name__", str(hint)))


def _limits(limits: Mapping[str, Any]) -> Iterator[str]:
    if pattern := limits.get("pattern"):
        yield _NAMES.get(str(pattern), f"({EXPECTED_BY_PATTERN.get(str(pattern), pattern)})")
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    numbers = [f"{signs[key]} {each:g}" for key, each in limits.items() if key in signs and abs(float(each)) < 1e6]
    if numbers:
        yield f"({', '.join(numbers)})"


def _blocks(hint: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the class of each block below a type, outer ones first."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        yield place, hint
        for name, each in get_type_hints(hint, include_extras=True).items():
            if not str(each).startswith("typing.ClassVar"):
                yield from _blocks(each, f"{place}.{name}")
    elif origin is Annotated:
        yield from _blocks(inner[0], place)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from _blocks(inner[1], f"{place}.NAME")
    else:
        for each in inner:
            yield from _blocks(each, place)


@functools.cache
def _comments(kind: Any) -> Mapping[str, str]:
    """Return the comment of each field of a class: at the end of its line, or in the lines above."""
    lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
    (tree,) = ast.parse("\n".join(lines)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        above = []
        for line in reversed(lines[: node.lineno - 1]):
            if not line.strip().startswith("#"):
                break
            above.insert(0, line.strip().lstrip("# "))
        last = lines[(node.end_lineno or node.lineno) - 1]
        _, mark, beside = last[node.end_col_offset :].partition("# ")
        found[node.target.id] = " ".join([*above, beside] if mark else above)
    return found


def _choice(family: str, name: str) -> list[str]:
    known, component = components.describe(family, name), components.outline(family, name)
    summary, meanings = _docstring(known.doc)
    comments: Mapping[str, str] = {}
    for each in reversed([each for each in component.__mro__ if dataclasses.is_dataclass(each)]):
        comments = {**comments, **_comments(each)}
        meanings = {**_docstring(inspect.cleandoc(each.__doc__ or ""))[1], **meanings}
    keys = []
    for key, each in known.parameters.items():
        texts = dict.fromkeys(filter(None, (meanings.get(key, ""), comments.get(key, ""))))
        keys.append(_key(key, each.hint, each.default, text=" ".join(texts), is_required=each.is_required))
    return [f"#### {name}", "", *_paragraphs(summary), "", *_table(keys)]


def _docstring(text: str) -> tuple[str, Mapping[str, str]]:
    """Return what precedes the sections of a docstring in Google's style, and the text of each entry of the first."""
    head, *parts = _SECTION.split(text)
    entries: dict[str, str] = {}
    if parts and parts[0] in ("Args", "Attributes"):
        for entry in re.split(r"\n(?=    \w)", "\n" + parts[1].strip("\n")):
            name, _, meaning = entry.strip().partition(":")
            entries[name.strip()] = " ".join(meaning.split())
    return head.strip(), entries


def _paragraphs(text: str) -> list[str]:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).split("\n")


def _file(kind: Any) -> str:
    source = Path(inspect.getsourcefile(kind) or "")
    return source.relative_to(Path(cli.__file__).parents[1]).as_posix()


if __name__ == "__main__":
    sys.stdout.write(command_reference() if "commands" in sys.argv else config_reference())
