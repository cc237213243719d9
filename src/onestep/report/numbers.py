"""Numbers as text: as many digits as their spread over blocks of seeds supports."""

from __future__ import annotations

import math
from decimal import Decimal

NOT_MEASURED = "not measured"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MINUS = "\N{MINUS SIGN}"
MOST_DECIMALS = 6


def measured(value: float, std: float | None) -> tuple[str, str | None]:
    """Return a mean and its standard deviation as text with the same number of decimals.

    The deviation keeps one significant digit, which is what a few blocks support, or two where the first is a 1 (1.4
    would lose a third of itself); without a deviation (a single block), or one of zero, the mean keeps four.
    """
    if std is None:
        return four_digits(value), None
    if std == 0:
        return four_digits(value), "0"
    places = decimals(std)
    return f"{value:.{places}f}", f"{std:.{places}f}"


def decimals(std: float) -> int:
    """Return the decimals at which a standard deviation (> 0) has one significant digit, or two from 1 to 2."""
    digits, _, exponent = f"{std:.1e}".partition("e")
    places = 1 if digits.startswith("1") else 0
    rounded = int(exponent) if places else int(f"{std:.0e}".partition("e")[2])
    return min(MOST_DECIMALS, max(0, places - rounded))


def four_digits(value: float) -> str:
    """Return `value` with four significant digits, without an exponent where that stays short."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -4 <= exponent <= 8:
        return f"{value:.3e}"
    return f"{value:.{max(0, 3 - exponent)}f}"


def plain(value: float) -> str:
    """Return a published number as it was given: the shortest text that reads back as `value`."""
    return f"{value:.15g}"


def difference(ours: float, theirs: float, *, ours_as_text: str) -> str:
    """Return `ours - theirs` with sign, and with the decimals that ours is written with."""
    places = places_in(ours_as_text)
    rounded = round(ours - theirs, places)
    if rounded == 0:
        return f"{PLUS_MINUS}{0:.{places}f}"
    return ("+" if rounded > 0 else MINUS) + f"{abs(rounded):.{places}f}"


def places_in(text: str) -> int:
    """Return the number of decimals of a written number: 2 for '1.54', 5 for '3e-05'."""
    exponent = Decimal(text).as_tuple().exponent
    assert isinstance(exponent, int), text
    return max(0, -exponent)


def count(value: int) -> str:
    """Return a count with thousands separated: 40,000."""
    return f"{value:,}"


def share(value: float) -> str:
    """Return a share in [0, 1] as per cent; only what is exactly nothing or all is written 0 % or 100 %."""
    percent = 100 * value
    if 0 < percent < 1:
        return "< 1 %"
    if 99 < percent < 100:
        return "> 99 %"
    return f"{percent:.0f} %"


def duration(seconds: float) -> str:
    """Return seconds as '0.4 s', '59 s', '2 min 10 s' or '3 h 05 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def short_count(value: float) -> str:
    """Return a count for an axis: 500, 2k, 12.5k, 3M."""
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def heading(column: str) -> str:
    """Return a column's name for readers: short names are abbreviations and stand in capitals (fd -> FD)."""
    return column.upper() if len(column) <= 3 else column.replace("_", " ")
