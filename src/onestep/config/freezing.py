"""Which parameters a run freezes, by their names: levels of its network's file, patterns, and a control by chance."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Levels = Mapping[str, Sequence[str]]
"""The levels of a network's file: patterns of what a level freezes, and behind a `!` of what it trains nevertheless."""

_TRAINED = "!"


def patterns_of(level: str, levels: Levels) -> list[str]:
    """Return the patterns of a level without their marks; one that is no level is a pattern itself."""
    return [each.removeprefix(_TRAINED) for each in levels[level]] if level in levels else [level]


def frozen_by(level: str, names: Iterable[str], *, levels: Levels) -> list[str]:
    """Return the names that a level or pattern freezes; patterns match whole names, as in `fnmatch.fnmatchcase`."""
    trained = [each.removeprefix(_TRAINED) for each in levels.get(level, ()) if each.startswith(_TRAINED)]
    frozen = [each for each in levels.get(level, (level,)) if level not in levels or not each.startswith(_TRAINED)]
    return [name for name in names if matches(name, frozen) and not matches(name, trained)]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns matches the whole name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def drawn_at_random(sizes: Mapping[str, int], *, most: int, seed: int) -> list[str]:
    """Return the names of tensors drawn with a seed, with at most and nearly `most` parameters, in their order.

    Tensors are taken in a random order, each that still fits; `sizes` are their numbers of parameters.
    """
    names, total, chosen = list(sizes), 0, set[str]()
    for index in np.random.RandomState(seed).permutation(len(names)).tolist():
        if total + sizes[names[index]] <= most:
            total += sizes[names[index]]
            chosen.add(names[index])
    return [name for name in names if name in chosen]
