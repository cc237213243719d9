"""A YAML file as plain values, of a size that can be checked at once, and without what YAML reads as something else.

YAML 1.1 reads `1:30` as 90, `010` as 8 and `2026-11-26` as a date. A config has decimal numbers only; all else that
looks like one is refused with its place, as are tags, keys that are given twice, and aliases that blow up a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from onestep.config.messages import ConfigError, Place, Problem, one_line, shortened

_LARGEST = 1_000_000  # characters of a file
_VALUES = 50_000  # of a file, with a copy for each alias
_DEPTH = 40
_DIGITS = 40  # of a number

_TAG = "tag:yaml.org,2002:"
_COLLECTIONS = {yaml.MappingNode: f"{_TAG}map", yaml.SequenceNode: f"{_TAG}seq"}
_WHOLE, _FRACTION = r"[-+]?(0|[1-9]\d*(_\d+)*)", r"(\d+(_\d+)*)?"
_SPELLINGS = {
    f"{_TAG}int": re.compile(_WHOLE),
    f"{_TAG}float": re.compile(rf"({_WHOLE}|[-+]?(?=\.\d))(\.{_FRACTION})?(e[-+]?\d+)?", re.IGNORECASE),
    f"{_TAG}bool": re.compile("yes|no|true|false|on|off", re.IGNORECASE),
    f"{_TAG}null": re.compile("|~|null", re.IGNORECASE),
}
_TEXT, _MERGE = f"{_TAG}str", f"{_TAG}merge"
# libyaml is ten times as fast, and not part of every PyYAML.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file as plain values.

    ConfigError if it cannot be read, is no YAML, is larger than any config, or has what YAML reads as something else.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError([f"{path}: no file, expected a YAML file, such as config.yaml"])
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}, expected a YAML file, such as config.yaml"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text (byte {error.start}). Fix: save it as UTF-8"]) from error
    if len(text) > _LARGEST:
        raise ConfigError([f"{path}: got more than {_LARGEST:_} characters, expected a config of fewer"])
    try:
        if (excess := _excess(text)) is not None:
            raise ConfigError([f"{path}: {excess}"])
        return _content(text, path=path)
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: {_syntax(error)}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: {_TOO_DEEP}"]) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        # Whatever the constructors of PyYAML raise.
        raise ConfigError([f"{path}: not YAML: {shortened(one_line(error))}"]) from error


def _content(text: str, *, path: Path) -> Any:
    """Return the values in a text; ConfigError for those that YAML reads as something else."""
    loader = _LOADER(text)
    root = loader.get_single_node()
    if root is None:
        return None
    if problems := _problems(root):
        raise ConfigError(problem.line(str(path)) for problem in problems)
    return loader.construct_document(root)


_TOO_DEEP = f"got mappings and lists in each other, expected at most {_DEPTH} levels"


_TOO_MANY = f"got more than {_VALUES:_} values, with a copy for each alias, expected fewer"


def _excess(text: str) -> str | None:
    """Return what is wrong with the levels and values of a text, by its events; None if they can be composed.

    Composing too many levels would overflow the stack of libyaml, and too many values would take seconds.
    """
    depth = values = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        values += isinstance(event, yaml.NodeEvent)
        if depth > _DEPTH or values > _VALUES:
            return _TOO_DEEP if depth > _DEPTH else _TOO_MANY
    return None


def _syntax(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {one_line(error)}"
    return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {getattr(error, 'problem', None)}"


def _problems(root: yaml.Node) -> list[Problem]:
    """Return what is wrong with a document; its size first, because all else takes time that grows with it."""
    try:
        size, _ = _size(root, known={}, depth=0)
    except OverflowError:
        return [Problem((), _TOO_DEEP)]
    if size > _VALUES:
        return [Problem((), _TOO_MANY)]
    return list(_odd_nodes(root, place=(), above=(), seen=set()))


def _size(node: yaml.Node, *, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return the values and the levels in a node, each as often as it is named; OverflowError for too many levels."""
    if id(node) not in known:
        known[id(node)] = 1, 1  # of an alias to the node that contains it, which is refused later
        parts = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) else ()
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        found = [_size(child, known=known, depth=depth + 1) for child in children] if depth <= _DEPTH else []
        known[id(node)] = 1 + sum(size for size, _ in found), 1 + max((levels for _, levels in found), default=0)
    if depth + known[id(node)][1] > _DEPTH:
        raise OverflowError
    return known[id(node)]


def _odd_nodes(
    node: yaml.Node, *, place: Place, above: tuple[yaml.Node, ...], seen: set[yaml.Node]
) -> Iterator[Problem]:
    """Yield the problems of a node and of all below it; each alias once."""
    if node in above:
        yield Problem(place, f"line {node.start_mark.line + 1}: an alias to the mapping or list that contains it")
    if node in seen:
        return
    seen.add(node)
    if (wrong := _odd_value(node)) is not None:
        yield Problem(place, f"line {node.start_mark.line + 1}: {wrong}")
        return
    first: dict[str, int] = {}
    children: list[tuple[str | int, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        children = list(enumerate(node.value))
    for key, child in node.value if isinstance(node, yaml.MappingNode) else ():
        name = key.value if isinstance(key, yaml.ScalarNode) else "[...]"
        line = key.start_mark.line + 1
        children.append((name, child))
        if key.tag not in (_TEXT, _MERGE) or not isinstance(key, yaml.ScalarNode):
            fix = "Fix: put it in quotes"
            yield Problem(place, f"line {line}: the key {shortened(repr(name))} is no text to YAML. {fix}")
        elif name in first:
            yield Problem((*place, name), f"given twice, in lines {first[name]} and {line}")
        else:
            first[name] = line
    for step, child in children:
        yield from _odd_nodes(child, place=(*place, step), above=(*above, node), seen=seen)


def _odd_value(node: yaml.Node) -> str | None:
    """Return the text for a value that a config cannot have, or that YAML reads as another than is written."""
    if not isinstance(node, yaml.ScalarNode):
        expected = next(tag for kind, tag in _COLLECTIONS.items() if isinstance(node, kind))
        return None if node.tag == expected else f"got the tag {_shown(node.tag)}, expected none. Fix: remove it"
    if node.tag == _TEXT:
        return None
    written = f"got {shortened(repr(node.value))}"
    if node.tag == f"{_TAG}timestamp":
        return f"{written}, which YAML reads as a date. Fix: put it in quotes"
    if (spelling := _SPELLINGS.get(node.tag)) is None:
        return f"got the tag {_shown(node.tag)}, expected none. Fix: remove it, or put the value in quotes"
    if spelling.fullmatch(node.value) and len(node.value) <= _DIGITS and _is_finite(node):
        return None
    if node.tag in (f"{_TAG}int", f"{_TAG}float"):
        return f"{written}, expected a decimal number, such as 10 or 1.5, of at most {_DIGITS} digits"
    return f"{written} with the tag {_shown(node.tag)}. Fix: remove the tag"


def _is_finite(node: yaml.ScalarNode) -> bool:
    return node.tag != f"{_TAG}float" or math.isfinite(float(node.value.replace("_", "")))


def _shown(tag: str) -> str:
    return shortened(tag.replace(_TAG, "!!"))
