"""Numbers as text: as many digits as their spread over blocks of seeds supports."""

from __future__ import annotations

import math
from decimal import Decimal

NOT_MEASURED = "not measured"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MINUS = "\N{MINUS SIGN}"
_MOST_DECIMALS = 6


def measured(value: float, std: float | None) -> tuple[str, str | None]:
    """Return a mean and its standard deviation as text with the same number of decimals.

    The deviation keeps one significant digit, or two where the first is a 1, because one digit of 1.4 would lose a
    third of it. Without a deviation, or with a deviation of zero, the mean keeps four significant digits.
    """
    if not std:
        return four_digits(value), None if std is None else "0"
    places = _decimals(std)
    return f"{value:.{places}f}", f"{std:.{places}f}"


def _decimals(std: float) -> int:
    digits, _, exponent = f"{std:.1e}".partition("e")
    places = 1 if digits.startswith("1") else 0
    rounded = int(exponent) if places else int(f"{std:.0e}".partition("e")[2])
    return min(_MOST_DECIMALS, max(0, places - rounded))


def four_digits(value: float) -> str:
    """Return a number with four significant digits, with an exponent only for very small and very large ones."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, 3 - exponent)}f}" if -4 <= exponent <= 8 else f"{value:.3e}"


def difference(ours: float, theirs: float, *, ours_as_text: str) -> str:
    """Return `ours - theirs` with sign, with the decimals of `ours_as_text`."""
    exponent = Decimal(ours_as_text).as_tuple().exponent
    assert isinstance(exponent, int), ours_as_text
    places = max(0, -exponent)
    rounded = round(ours - theirs, places)
    if rounded == 0:
        return f"{PLUS_MINUS}{0:.{places}f}"
    return ("+" if rounded > 0 else MINUS) + f"{abs(rounded):.{places}f}"


def share(value: float) -> str:
    """Return a share in [0, 1] as per cent; 0 % and 100 % are exact."""
    percent = 100 * value
    if 0 < percent < 1:
        return "< 1 %"
    return "> 99 %" if 99 < percent < 100 else f"{percent:.0f} %"


def duration(seconds: float) -> str:
    """Return seconds as "0.4 s", "59 s", "2 min 10 s" or "3 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def short_count(value: float) -> str:
    """Return a number for the tick of an axis: 500, 2k, 12.5k, 3M."""
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def heading(column: str) -> str:
    """Return a column's name for readers; a short name is an abbreviation, in capitals (fd -> FD)."""
    return column.upper() if len(column) <= 3 else column.replace("_", " ")
