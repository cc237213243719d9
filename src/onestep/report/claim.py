"""The claim that a table supports, worded from its numbers: also when they do not support it.

The claim under test is the paper's (arXiv:2506.09376): a diffusion model needs many network evaluations for an image;
fine-tuned by a GAN objective, the same network needs few. The rows tell their parts by what they are: a network with
many evaluations, the same network with few, and networks that were fine-tuned from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from onestep.metrics import Direction
from onestep.report import numbers
from onestep.report.table import Row, Table

Verdict = Literal["holds", "close", "fails", "open"]
NO_BREAK = "\N{NO-BREAK SPACE}"
ORDER: tuple[Verdict, ...] = ("holds", "close", "fails")
MOST_ROWS = 4
"""The claim names this many rows; a table may hold more."""
CLOSE = 2.0
"""A fine-tuned row comes close if it is at most this many times worse than the row with many evaluations."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the numbers say.

    Attributes:
        verdict: Of the best fine-tuned row: as good as many evaluations, at most `CLOSE` times worse, worse; or open,
            where the table lacks the rows or the numbers to say.
        headline: One line without a full stop.
        sentences: The numbers behind it.
        column: The column the claim is judged by.
        rows: The rows it speaks of: many evaluations, few, fine-tuned (the best, where there are too many to name).
    """

    verdict: Verdict
    headline: str
    sentences: tuple[str, ...]
    column: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A fine-tuned row, how it compares, and the sentence that says so."""

    row: Row
    verdict: Verdict
    sentence: str


def origins(config: Mapping[str, Any]) -> dict[str, str]:
    """Return for each run that starts from a teacher the run (or the name) of that teacher."""
    teachers = config.get("teachers", {})
    found = {}
    for run, options in config["runs"].items():
        if options.get("teacher") is not None:
            teacher = options["teacher"]
            found[run] = teachers.get(teacher, {}).get("run", teacher)
    return found


def state_claim(table: Table, *, column: str, origin: Mapping[str, str]) -> Claim:
    """Say whether the fine-tuned rows of a table reach the network they started from.

    Args:
        table: The measured table.
        column: The column to judge by.
        origin: For each fine-tuned run the run or teacher it started from, see `origins`.
    """
    sources = [row for row in table.rows if row.run in origin.values()]
    if not sources:
        return _open(table, column, "No row of this table was fine-tuned from another one, so it supports no claim.")
    many = max(sources, key=lambda row: row.nfe)
    tuned = [row for row in table.rows if origin.get(row.run) == many.run and row.nfe < many.nfe]
    if not tuned:
        return _open(table, column, f"No row was fine-tuned from {many.label} to need fewer evaluations.")
    few = min(row.nfe for row in tuned)
    tuned = [row for row in tuned if row.nfe == few]
    before = next((row for row in sources if row.run == many.run and row.nfe == few), None)
    rows = (many, *([before] if before else []), *tuned)
    measured = [row for row in tuned if row.metrics[column] is not None]
    if many.metrics[column] is None or not measured:
        missing = [f"{row.label} ({row.sampler})" for row in (many, *tuned) if row.metrics[column] is None]
        reason = f"{numbers.heading(column)} is not measured for {', '.join(missing)}."
        return _open(table, column, reason, rows=rows[:MOST_ROWS])
    return _judge(table, column=column, many=many, before=before, tuned=measured, unmeasured=len(tuned) - len(measured))


def _open(table: Table, column: str, reason: str, *, rows: tuple[Row, ...] = ()) -> Claim:
    return Claim(verdict="open", headline=f"{table.title}: no verdict", sentences=(reason,), column=column, rows=rows)


def _judge(table: Table, *, column: str, many: Row, before: Row | None, tuned: list[Row], unmeasured: int) -> Claim:
    direction = table.directions[column]
    judged = [_judge_row(row, many=many, before=before, column=column, direction=direction) for row in tuned]
    verdict = min((each.verdict for each in judged), key=ORDER.index)
    reached = sum(each.verdict == verdict for each in judged)
    start = (many,) if before is None else (many, before)
    shown = _best(judged, column=column, direction=direction, count=MOST_ROWS - len(start))
    first, *others = (each.sentence for each in shown)
    sentences = [
        _start(many, before=before, column=column, direction=direction),
        f"Fine-tuned from it, {first}",
        *others,
    ]
    if len(shown) < len(judged):
        sentences.append(f"{reached} of {len(judged)} fine-tuned rows support the headline; the table shows them all.")
    if table.dataset is None:
        sentences.append(f"This is of {many.dataset} alone; the table shows the other datasets.")
    if unmeasured:
        sentences.append(f"Fine-tuned rows not measured yet: {unmeasured}.")
    return Claim(
        verdict=verdict,
        headline=_headline(verdict, everywhere=reached == len(judged), few=tuned[0].nfe, many=many.nfe),
        sentences=tuple(sentences),
        column=column,
        rows=(*start, *(each.row for each in shown)),
    )


def _best(judged: list[_Judged], *, column: str, direction: Direction, count: int) -> list[_Judged]:
    """Return the `count` best rows, in the order of the table."""
    ranked = sorted(judged, key=lambda each: _excess(each.row, judged[0].row, column, direction))
    return [each for each in judged if each in ranked[:count]]


def _headline(verdict: Verdict, *, everywhere: bool, few: int, many: int) -> str:
    subject = "One network evaluation" if few == 1 else f"{few} network evaluations"
    one = few == 1
    phrase = {
        "holds": f"{'does' if one else 'do'} the work of {many}",
        "close": f"{'comes' if one else 'come'} close to {many}",
        "fails": f"{'does' if one else 'do'} not replace {many} here",
    }[verdict]
    return f"{subject} {phrase}" + ("" if everywhere or verdict == "fails" else ", but not in every run")


def _judge_row(row: Row, *, many: Row, before: Row | None, column: str, direction: Direction) -> _Judged:
    verdict, comparison = _compare(row, many, column=column, direction=direction)
    useless = before is not None and before.metrics[column] is not None and _excess(row, before, column, direction) >= 0
    if useless:
        verdict, comparison = "fails", f"{comparison}, and no better than before"
    frozen = f", with {numbers.share(row.frozen_share)} of its weights frozen," if row.frozen_share else ""
    sentence = f"{row.label}{frozen} scores {_number(row, column)} with {row.nfe}: {comparison}."
    return _Judged(row=row, verdict=verdict, sentence=sentence)


def _compare(row: Row, other: Row, *, column: str, direction: Direction) -> tuple[Verdict, str]:
    """Return how `row` compares with `other`, as a verdict and in words."""
    excess = _excess(row, other, column, direction)
    spread = math.hypot(row.std[column] or 0.0, other.std[column] or 0.0)
    if abs(excess) <= spread:
        return "holds", f"as good as with {other.nfe}, within the spread of the seeds"
    if excess < 0:
        return "holds", f"better than with {other.nfe}"
    factor = _factor(row, other, column, direction)
    if factor is None:
        return "fails", f"worse than with {other.nfe}"
    return (
        "close" if factor <= CLOSE else "fails",
        f"worse than with {other.nfe} by a factor of {numbers.factor(factor)}",
    )


def _start(many: Row, *, before: Row | None, column: str, direction: Direction) -> str:
    """Return the sentence on the network before it was fine-tuned."""
    needed = (
        f"{many.label} scores {numbers.heading(column)} {_number(many, column)} with {evaluations(many.nfe)} an image"
    )
    untuned = (
        f" and {_number(before, column)} with {before.nfe}" if before and before.metrics[column] is not None else ""
    )
    return f"{needed}{untuned} ({direction} is better)."


def evaluations(count: int) -> str:
    """Return '1 network evaluation' or '35 network evaluations'."""
    return f"{count} network evaluation" + ("" if count == 1 else "s")


def _number(row: Row, column: str) -> str:
    value = row.metrics[column]
    assert value is not None, (row.label, column)
    number, std = numbers.measured(value, row.deviation(column))
    return number if std is None else f"{number}{NO_BREAK}{numbers.PLUS_MINUS}{NO_BREAK}{std}"


def _excess(row: Row, other: Row, column: str, direction: Direction) -> float:
    """Return by how much `row` is worse than `other`; negative where it is better."""
    ours, theirs = row.metrics[column], other.metrics[column]
    assert ours is not None and theirs is not None, (row.label, other.label, column)
    return ours - theirs if direction == "lower" else theirs - ours


def _factor(row: Row, other: Row, column: str, direction: Direction) -> float | None:
    """Return how many times `row` is worse than `other`; None where a ratio says nothing."""
    ours, theirs = row.metrics[column], other.metrics[column]
    assert ours is not None and theirs is not None, (row.label, other.label, column)
    if ours <= 0 or theirs <= 0:
        return None
    return ours / theirs if direction == "lower" else theirs / ours
