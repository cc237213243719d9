"""Scales of a chart: from a range of numbers to ticks and positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOG_RATIO = 12.0
"""Positive values that span more than this factor are drawn on a logarithmic axis."""
MOST_TICKS = 6


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A map from values to positions.

    Attributes:
        low, high: The values at the two ends.
        start, end: Their positions.
        is_log: Whether equal factors take equal lengths.
        ticks: The values that are labelled.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear(values: Iterable[float], *, start: float, end: float) -> Scale:
    """Return a linear scale that holds all values and ends on ticks."""
    values = list(values)
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / (MOST_TICKS - 2))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    return Scale(low=ticks[0], high=ticks[-1], start=start, end=end, is_log=False, ticks=ticks)


def _round_step(step: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def logarithmic(values: Iterable[float], *, start: float, end: float) -> Scale:
    """Return a logarithmic scale that holds all values (> 0), with a little air at both ends."""
    values = list(values)
    air = (max(values) / min(values)) ** 0.06 if max(values) > min(values) else 1.5
    low, high = min(values) / air, max(values) * air
    return Scale(low=low, high=high, start=start, end=end, is_log=True, ticks=_log_ticks(low, high))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return as many of 1, 2, 5 (or 1, 3, or 1) times powers of ten as fit."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= MOST_TICKS:
            break
    return tuple(ticks[:: math.ceil(len(ticks) / MOST_TICKS)])


def wants_log(values: Sequence[float]) -> bool:
    """Return whether values are better seen on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > LOG_RATIO


def spread_out(centres: Sequence[float], *, sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Move things apart until none overlaps, within [low, high], each as little as its neighbours allow.

    Args:
        centres: Where their middles would stand.
        sizes: Their sizes; together at most `high - low`.
        low: The least position that one of them may cover.
        high: The greatest.

    Returns:
        Where their middles stand, in the order given.
    """
    blocks: list[tuple[float, list[int]]] = []
    for index in sorted(range(len(centres)), key=lambda index: centres[index]):
        blocks.append((_start([index], centres, sizes, low, high), [index]))
        while len(blocks) > 1 and blocks[-1][0] < blocks[-2][0] + _size(blocks[-2][1], sizes):
            members = blocks[-2][1] + blocks[-1][1]
            blocks[-2:] = [(_start(members, centres, sizes, low, high), members)]
    moved = list(centres)
    for start, members in blocks:
        for member in members:
            moved[member] = start + sizes[member] / 2
            start += sizes[member]
    return moved


def _size(members: Sequence[int], sizes: Sequence[float]) -> float:
    return sum(sizes[member] for member in members)


def _start(members: Sequence[int], centres: Sequence[float], sizes: Sequence[float], low: float, high: float) -> float:
    """Return where a stack of neighbours starts: as near to their centres as the bounds allow."""
    wanted, above = [], 0.0
    for member in members:
        wanted.append(centres[member] - sizes[member] / 2 - above)
        above += sizes[member]
    return max(min(sum(wanted) / len(wanted), high - above), low)
