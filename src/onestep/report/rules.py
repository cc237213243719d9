"""A table's rule of the config, and whether its numbers meet it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onestep.config.tables import RuleBlock
from onestep.report import numbers
from onestep.report.charts import row_name
from onestep.report.table import Row, Table

_AT_MOST, _AT_LEAST = "\N{LESS-THAN OR EQUAL TO}", "\N{GREATER-THAN OR EQUAL TO}"
Verdict = Literal["holds", "does not hold", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """A rule in words, whether it holds, and the numbers compared; no numbers if one is not measured."""

    rule: str
    verdict: Verdict
    numbers: str


def ruling(rule: RuleBlock, *, table: Table) -> Ruling:
    """Compare the shown numbers of a table by its rule; a deviation has no part in it."""
    row, bound = _row(rule.row, table), rule.at_most if rule.at_least is None else rule.at_least
    assert bound is not None, rule
    words, sign = ("at most", _AT_MOST) if rule.at_least is None else ("at least", _AT_LEAST)
    other = None if rule.times is None else _row(rule.times, table)
    heading = numbers.heading(rule.column)
    factor = "" if bound == 1 else f"{bound:.15g} times "
    than = f"{bound:.15g}" if other is None else f"{factor}that of {row_name(other, table=table)}"
    stated = f"{heading} of {row_name(row, table=table)} is {words} {than}."
    shown = row.numbers[rule.column].shown
    base = 1.0 if other is None else other.numbers[rule.column].shown
    if shown is None or base is None:
        return Ruling(rule=stated, verdict="not measured", numbers="")
    limit = bound * base
    holds = shown <= limit if rule.at_least is None else shown >= limit
    meant = sign if holds else {_AT_MOST: ">", _AT_LEAST: "<"}[sign]
    found = f"{numbers.four_digits(shown)} {meant} {numbers.four_digits(limit)}"
    if other is not None and bound != 1:
        found += f" = {bound:.15g} \N{MULTIPLICATION SIGN} {numbers.four_digits(base)}"
    return Ruling(rule=stated, verdict="holds" if holds else "does not hold", numbers=found)


def _row(name: str, table: Table) -> Row:
    return next(row for row in table.rows if f"{row.run}/{row.sampler}" == name)
