"""Problems of a config, one line each: the place, what is there, what is expected, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Place = tuple[str | int, ...]
"""Keys and list positions from the root of the document to a value."""

_SHOWN = 50  # problems, and choices of a value
_LONGEST = 60  # characters of a value
_ALIKE = 3  # runs with the same problem, each of which is shown

MISSING = "missing, and there is no default"
"""The text for a required key that is absent."""


class ConfigError(ValueError):
    """A config with `problems`, one line each: `demo/config.yaml: runs.d2o.batch: got 0, expected a number above 0`."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - _SHOWN
        super().__init__("\n".join([*self.problems[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]))


@dataclass(frozen=True)
class Problem:
    """A problem of one place of the document; `text` is what is wrong, without the place."""

    place: Place
    text: str

    def line(self, source: str) -> str:
        """Return the problem as users see it; `source` is the file's name."""
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{_printable(step)}" for step in self.place)
        return ": ".join(filter(None, (source, place.removeprefix("."), self.text)))


def folded(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems; of many runs with the same one, as by `base:` and `vary:`, that of the first."""
    alike: dict[Any, list[Problem]] = {}
    for problem in problems:
        is_run = problem.place[:1] == ("runs",) and len(problem.place) > 2
        alike.setdefault((problem.place[2:], problem.text) if is_run else problem, []).append(problem)
    found: list[Problem] = []
    for group in alike.values():
        first = group[0]
        more = Problem(first.place, f"{first.text} (and alike in {len(group) - 1} further runs)")
        found += [more] if len(group) > _ALIKE else group
    return found


def in_order(problems: Iterable[Problem], document: Any) -> list[Problem]:
    """Return the problems, each once, in the order of their places in the document."""
    positions: dict[int, dict[str | int, int]] = {}  # of the steps into each mapping or list
    return sorted(dict.fromkeys(problems), key=lambda problem: _position(problem.place, document, positions))


def _position(place: Place, value: Any, positions: dict[int, dict[str | int, int]]) -> tuple[int, ...]:
    position = []
    for step in place:
        if id(value) not in positions:
            steps = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            positions[id(value)] = {each: index for index, each in enumerate(steps)}
        known = positions[id(value)]
        position.append(known.get(step, len(known)))
        value = value[step] if step in known else None
    return tuple(position)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Return text with its end left out where it has more than `longest` characters."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _printable(text: str) -> str:
    """Return text of a document as a part of one line."""
    return shortened(text if text.isprintable() else repr(text)[1:-1], 200)


def listed(names: Iterable[str]) -> str:
    """Return names with commas in between, of many the first."""
    first = [_printable(each) for each in names]
    return ", ".join(first if len(first) <= _SHOWN else [*first[:_SHOWN], f"and {len(first) - _SHOWN} more"])


def got(value: Any) -> str:
    """Return a value of a document as messages show it: `got the text '1e-4'`."""
    if value is None:
        return "got nothing"
    if isinstance(value, bool):
        return f"got {str(value).lower()}"
    if isinstance(value, str):
        return f"got the text {shortened(value)!r}"
    if isinstance(value, (list, tuple)):
        return "got a list" if value else "got an empty list"
    return "got a mapping" if isinstance(value, dict) else f"got {shortened(repr(value))}"


def not_among(value: Any, choices: Iterable[str], *, of: str) -> str:
    """Return the text for a value that is none of `choices`; `of` names these in plural: "teachers"."""
    known = list(choices)
    expected = f"expected one of the {of}: {listed(known)}" if known else f"and there are no {of}"
    return f"{got(value)}, {expected}{closest(value, known)}"


def unknown(place: Place, name: str | None, choices: Iterable[str], *, of: str) -> Iterator[Problem]:
    """Yield a problem where a name is given that is none of `choices`."""
    choices = list(choices)
    if name is not None and name not in choices:
        yield Problem(place, not_among(name, choices, of=of))


def exactly_one(block: Mapping[str, Any], *keys: str) -> str | None:
    """Return the text where a block does not have exactly one of `keys`; None otherwise."""
    given = [key for key in keys if block.get(key) is not None]
    if len(given) == 1:
        return None
    return f"got {' and '.join(given) or 'none'}, expected exactly one of: {', '.join(keys)}"


def one_line(error: object) -> str:
    """Return an error's message in one line."""
    line = " ".join(str(error).split())
    return line if line.isprintable() else repr(line)[1:-1]


def closest(value: Any, choices: Sequence[str]) -> str:
    """Return the hint for text that is close to one of `choices`: `. Did you mean d2o?`; otherwise nothing."""
    short = isinstance(value, str) and len(value) <= _LONGEST
    close = difflib.get_close_matches(value, choices, n=1) if short and len(choices) <= 5_000 else []
    return f". Did you mean {_printable(close[0])}?" if close else ""
