"""What is wrong with a config, in one line each: where, what was found, what was expected, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]
"""Keys and list positions from the root of the document to a value."""


class ConfigError(ValueError):
    """A config that cannot be used.

    Attributes:
        problems: One line each: `demo/config.yaml: runs.digits_d2o.batch: found 0, expected a number above 0`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Problem:
    """One thing wrong at one place of the document."""

    path: Path
    text: str

    def line(self, source: str) -> str:
        """Return the problem as it is shown; `source` is the file's name."""
        return ": ".join(filter(None, (source, dotted(self.path), self.text)))


def dotted(path: Path) -> str:
    """Return a path as readers write it: `tables.digits.rows[0].sampler`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def in_order(problems: Iterable[Problem], document: Any) -> list[Problem]:
    """Return the problems in the order of the places in the document."""
    return sorted(problems, key=lambda problem: _position(problem.path, document))


def _position(path: Path, value: Any) -> tuple[int, ...]:
    position = []
    for step in path:
        keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
        position.append(keys.index(step) if step in keys else len(keys))
        value = value[step] if step in keys else None
    return tuple(position)


def found(value: Any) -> str:
    """Return how a value of a document is called in a message."""
    if value is None:
        return "found nothing"
    if isinstance(value, bool):
        return f"found {str(value).lower()}"
    if isinstance(value, str):
        return f"found the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    if isinstance(value, (list, tuple)):
        return "found a list" if value else "found an empty list"
    return "found a mapping" if isinstance(value, dict) else f"found {value!r}"


def not_among(value: Any, choices: Iterable[str], *, of: str) -> str:
    """Return the text for a name that is none of `choices`; `of` says what they are: "teachers"."""
    known = sorted(choices)
    offer = f"expected one of the {of}: {', '.join(known)}" if known else f"and there are no {of}"
    return f"{found(value)}, {offer}{_closest(value, known)}"


def unknown_key(key: str, allowed: Sequence[str]) -> str:
    """Return the text for a key that is not among `allowed`."""
    return f"unknown key{_closest(key, allowed)}; allowed: {', '.join(allowed)}"


def missing_key() -> str:
    """Return the text for a key that has no default and is absent."""
    return "missing, and there is no default"


def not_exactly_one(given: Sequence[str], keys: Sequence[str]) -> str | None:
    """Return the text where not exactly one of `keys` is given; None where all is well."""
    if len(given) == 1:
        return None
    return f"found {' and '.join(given) or 'none of them'}, expected exactly one of: {', '.join(keys)}"


def _closest(value: Any, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(value, list(choices), n=1) if isinstance(value, str) else []
    return f"; did you mean {close[0]}?" if close else ""
