"""Tables as CSV, Markdown (GitHub) and LaTeX (booktabs), written by pandas from one set of cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onestep.escapes import csv_cell, markdown, one_line
from onestep.report import cells, numbers
from onestep.report.cells import Cell
from onestep.report.table import Row, Table

if TYPE_CHECKING:
    from pandas import DataFrame

_WORDS = ("run", "sampler", "dataset", "snapshot")  # left-aligned columns; the others are numbers
_SHOWN = {"mean": "mean of the blocks", "first": "first block", "best": "best block"}
_TEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    numbers.PLUS_MINUS: r"$\pm$",
    numbers.MINUS: "$-$",
    cells.DAGGER: r"$^\dagger$",
    cells.DOUBLE_DAGGER: r"$^\ddagger$",
    cells.SECTION: r"\S{}",
    cells.PILCROW: r"\P{}",
    cells.REFERENCE: r"$^\ast$",
    cells.ARROWS["lower"]: r"$\downarrow$",
    cells.ARROWS["higher"]: r"$\uparrow$",
}


def as_csv(table: Table) -> str:
    """Return a table as CSV: numbers in full precision, words for missing ones."""
    import pandas

    lines = [_csv_row(row, table=table) for row in table.rows]
    frame = pandas.DataFrame(lines, dtype=object).map(lambda cell: csv_cell(cell) if isinstance(cell, str) else cell)
    return frame.to_csv(index=False, lineterminator="\n")


def _csv_row(row: Row, *, table: Table) -> dict[str, Any]:
    facts, untrained = cells.facts(row, table=table), cells.untrained(row)
    line: dict[str, Any] = {
        "run": row.run or cells.NOT_RUN,
        "sampler": row.sampler or cells.NOT_RUN,
        "label": row.label,
        "dataset": row.dataset,
        "nfe": facts["NFE"],
        "images_seen": facts["images"] if row.images_seen is None else row.images_seen,
        "snapshot": row.snapshot or cells.NOT_PUBLISHED,
        "snapshot_policy": facts["snapshot"],
        "average": untrained if row.ema is None else f"{row.ema:.15g}",
        "frozen_share": untrained if row.frozen_share is None else row.frozen_share,
        "shown": f"mean of {len(row.runs)} runs" if row.runs else _SHOWN[table.show],
    }
    for column in table.columns:
        line |= {f"{column}{name}": value for name, value in _csv_number(row, column, table=table).items()}
    fast = {"fast": str(row.fast).lower()} if any(each.fast for each in table.rows) else {}
    if any(each.trained_on for each in table.rows):
        fast["trained_on"] = " ".join(row.trained_on)
    return line | {"trained_with_other_code": str(row.trained_with_other_code).lower()} | fast


def _csv_number(row: Row, column: str, *, table: Table) -> dict[str, Any]:
    """Return the cells of one column, by the end of their heading."""
    found, published = row.numbers[column], row.published.get(column)
    measured = found.shown is not None
    line: dict[str, Any] = {"": found.shown if measured else cells.absent(row, column)}
    if table.show == "mean" or any(each.runs for each in table.rows):
        line["_std"] = found.std if found.std is not None else "one block" if measured else cells.absent(row, column)
    line |= {"_blocks": found.blocks, "_best": str(found.is_best).lower()}
    if column not in cells.published_columns(table):
        return line
    if published is None:
        return line | dict.fromkeys(("_published", "_difference", "_source"), cells.NOT_PUBLISHED)
    return line | {
        "_published": published,
        "_difference": cells.absent(row, column) if found.shown is None else found.shown - published,
        "_source": row.sources.get(column, "no source given"),
    }


def _frame(table: Table, *, text: Callable[[str], str], number: Callable[[Cell], str], dagger: str) -> DataFrame:
    """Return the cells as a format writes text, a measured number, and the mark of a row trained with other code."""
    import pandas

    published = cells.published_columns(table)
    lines = []
    for row in table.rows:
        label = f"{row.label} {cells.SECTION}" if row.fast else row.label
        line = {"run": text(label) + (dagger if row.trained_with_other_code else "")}
        line |= {text(name): text(value) for name, value in cells.facts(row, table=table).items()}
        for column in table.columns:
            found = cells.cell(row, column=column, table=table)
            missing = f" ({found.missing})" if found and found.missing else ""
            shown = cells.absent(row, column) if found is None else number(found) + text(found.mark) + missing
            line[text(cells.title_of(column, table=table))] = shown
            if column in published:
                heading = text(numbers.heading(column))
                texts = map(text, cells.published_cells(row, column=column, table=table))
                line |= dict(zip((f"{heading} published", f"{heading} difference"), texts, strict=True))
        lines.append(line)
    return pandas.DataFrame(lines)


def as_markdown(table: Table) -> str:
    """Return a table in GitHub's Markdown: title, caption, cells, notes."""
    frame = _frame(
        table, text=markdown, number=lambda n: f"**{n.text}**" if n.best else n.text, dagger=f" {cells.DAGGER}"
    )
    sides = ["left" if name in _WORDS else "right" for name in frame.columns]
    text = frame.to_markdown(index=False, tablefmt="pipe", colalign=sides, disable_numparse=True)
    notes = "\n".join(f"{markdown(note)}  " for note in cells.notes(table))
    head = [f"### {markdown(table.title)}", *([markdown(table.caption)] if table.caption else [])]
    return "\n\n".join([*head, text, notes]) + "\n"


def as_latex(table: Table) -> str:
    """Return a table as a `tabular` with its notes, to include in a `table` environment; needs booktabs alone."""
    frame = _frame(table, text=latex, number=_latex_number, dagger=r"$^\dagger$")
    sides = "".join("l" if name in _WORDS else "r" for name in frame.columns)
    # The end of a line would take a bracket or a star that follows as its own.
    frame["run"] = [f"{{}}{label}" if label.startswith(("[", "*")) else label for label in frame["run"]]
    text = frame.to_latex(index=False, escape=False, column_format=sides)
    body, _, end = text.rpartition(r"\end{tabular}")
    width = len(frame.columns)
    notes = [rf"\multicolumn{{{width}}}{{l}}{{\footnotesize {latex(note)}}} \\" for note in cells.notes(table)]
    head = [f"% {one_line(line)}" for line in f"{table.title}\n{table.caption}".splitlines() if line]
    return "\n".join([*head, body + "\n".join(notes), rf"\end{{tabular}}{end}"])


def _latex_number(found: Cell) -> str:
    number = found.number if found.std is None else rf"{found.number} \pm {found.std}"
    return rf"$\mathbf{{{number}}}$" if found.best else f"${number}$"


def latex(text: str) -> str:
    """Escape text for one line of LaTeX; arrows, daggers and signs become commands."""
    return "".join(_TEX.get(character, character) for character in one_line(text))
