"""YAML files as plain values. Keys that are given twice or are no text, which PyYAML accepts, are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from onestep.config.messages import ConfigError, Place, Problem

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file as mappings, lists, texts, numbers, booleans and None.

    Raises:
        ConfigError: The file is absent or not readable, is no YAML, or has a key twice or one that is no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}, expected a YAML file, such as config.yaml"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text (byte {error.start}). Fix: save it as UTF-8"]) from error
    try:
        return _construct(text, source=str(path))
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: {_syntax(error)}"]) from error


def _construct(text: str, *, source: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        problems = list(_odd_keys(root, place=(), above=(), seen=set()))
        if problems:
            raise ConfigError([problem.line(source) for problem in problems])
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _syntax(error: yaml.YAMLError) -> str:
    """Return a syntax error in one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {' '.join(str(error).split())}"
    return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {getattr(error, 'problem', None)}"


def _odd_keys(
    node: yaml.Node, *, place: Place, above: tuple[yaml.Node, ...], seen: set[yaml.Node]
) -> Iterator[Problem]:
    """Yield the problems of the keys of a node and of all below it; each alias once."""
    if node in above:
        yield Problem(place, f"line {node.start_mark.line + 1}: an alias to the mapping or list that contains it")
    if node in seen:
        return
    seen.add(node)
    if isinstance(node, yaml.MappingNode):
        yield from _odd_keys_here(node, place=place)
    for step, child in _children(node):
        yield from _odd_keys(child, place=(*place, step), above=(*above, node), seen=seen)


def _odd_keys_here(mapping: yaml.MappingNode, *, place: Place) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for key, _ in mapping.value:
        line = key.start_mark.line + 1
        if key.tag not in (_TEXT, _MERGE):
            yield Problem(place, f"line {line}: the key {_written(key)!r} is no text to YAML. Fix: put it in quotes")
        elif key.value in first:
            yield Problem((*place, key.value), f"given twice, in lines {first[key.value]} and {line}")
        else:
            first[key.value] = line


def _children(node: yaml.Node) -> list[tuple[str | int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return [(_written(key), child) for key, child in node.value]
    return list(enumerate(node.value)) if isinstance(node, yaml.SequenceNode) else []


def _written(key: yaml.Node) -> str:
    return key.value if isinstance(key, yaml.ScalarNode) else "[...]"
