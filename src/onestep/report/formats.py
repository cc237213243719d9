"""Tables as CSV, Markdown (GitHub) and LaTeX (booktabs): the same rows give the same bytes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from onestep import files
from onestep.report import cells, numbers
from onestep.report.cells import DAGGER, Cell
from onestep.report.table import Row, Table, as_json
from onestep.report.tradeoffs import as_svg

WORDS = ("run", "sampler", "dataset", "snapshot")
"""Headings of the columns that stand at the left; the others are numbers."""
SHOWN = {"mean": "mean of the blocks", "first": "first block", "best": "best block"}
"""What a table's numbers stand for, in one cell of its CSV."""
TEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    numbers.PLUS_MINUS: r"$\pm$",
    numbers.MINUS: "$-$",
    DAGGER: r"$^\dagger$",
    cells.DOUBLE_DAGGER: r"$^\ddagger$",
    cells.ARROWS["lower"]: r"$\downarrow$",
    cells.ARROWS["higher"]: r"$\uparrow$",
}


def write_table(folder: Path | str, *, table: Table, drawn: str) -> None:
    """Write `{table}.json`, `.csv`, `.md` and `.tex`, and column `drawn` over evaluations as `.svg`, below `folder`."""
    stem = Path(folder) / table.name
    files.write_json(f"{stem}.json", as_json(table))
    files.write_text(f"{stem}.csv", as_csv(table))
    files.write_text(f"{stem}.md", as_markdown(table))
    files.write_text(f"{stem}.tex", as_latex(table))
    files.write_text(f"{stem}.svg", as_svg(table, column=drawn))


def as_csv(table: Table) -> str:
    """Return a table as CSV: numbers in full, words where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["run", "sampler", "label", "dataset", "nfe", "images_seen", "snapshot", "snapshot_policy", "average"]
    names += ["frozen_share", "shown"]
    published = cells.published_columns(table)
    for column in table.columns:
        names += [column, *([f"{column}_std"] if table.show == "mean" else []), f"{column}_blocks", f"{column}_best"]
        names += [f"{column}_{each}" for each in ("published", "difference", "source") if column in published]
    writer.writerow([*names, "trained_with_other_code"])
    for row in table.rows:
        writer.writerow(_csv_row(row, table=table, published=published))
    return text.getvalue()


def _csv_row(row: Row, *, table: Table, published: Sequence[str]) -> list[str]:
    said = cells.facts(row, table=table)
    line = [row.run or cells.ELSEWHERE, said["sampler"], row.label, row.dataset, said["evaluations"]]
    line += [said["images"] if row.images_seen is None else str(row.images_seen)]
    line += [row.snapshot or cells.NOT_PUBLISHED, said["snapshot"]]
    line += [cells.untrained(row) if row.ema is None else numbers.plain(row.ema)]
    line += [said["frozen"] if row.frozen_share is None else repr(row.frozen_share), SHOWN[row.show]]
    for column in table.columns:
        line += _csv_number(row, column)
        line += _csv_published(row, column) if column in published else []
    return [*line, str(row.trained_with_other_code).lower()]


def _csv_number(row: Row, column: str) -> list[str]:
    value, std = row.metrics[column], row.std[column]
    spread = numbers.NOT_MEASURED if value is None else "one block" if std is None else repr(std)
    return [
        numbers.NOT_MEASURED if value is None else repr(value),
        *([spread] if row.show == "mean" else []),
        str(row.blocks[column]),
        str(column in row.best).lower(),
    ]


def _csv_published(row: Row, column: str) -> list[str]:
    value, published = row.metrics[column], row.published.get(column)
    if published is None:
        return [cells.NOT_PUBLISHED] * 3
    difference = numbers.NOT_MEASURED if value is None else repr(value - published)
    return [repr(published), difference, row.sources.get(column, "no source given")]


def as_markdown(table: Table) -> str:
    """Return a table in GitHub's Markdown, with its title above and its notes below."""
    names = [*_leading_headings(table), *_number_headings(table)]
    ruler = ["---" if name in WORDS else "---:" for name in names]
    lines = [_markdown_line(_markdown(name) for name in names), _markdown_line(ruler)]
    lines += [_markdown_line(_markdown_row(row, table=table)) for row in table.rows]
    notes = "\n".join(f"{_markdown(note)}  " for note in cells.notes(table))
    return f"### {_markdown(table.title)}\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


def _leading_headings(table: Table) -> list[str]:
    return ["run", *cells.facts(table.rows[0], table=table)]


def _number_headings(table: Table) -> list[str]:
    names = []
    for column in table.columns:
        names.append(cells.title_of(column, table=table))
        if column in cells.published_columns(table):
            names += [f"{numbers.heading(column)} published", "difference"]
    return names


def _markdown_line(parts: object) -> str:
    return "| " + " | ".join(parts) + " |"  # type: ignore[arg-type]


def _markdown_row(row: Row, *, table: Table) -> list[str]:
    mark = f" {DAGGER}" if row.trained_with_other_code else ""
    line = [_markdown(row.label) + mark, *map(_markdown, cells.facts(row, table=table).values())]
    for column in table.columns:
        found = cells.cell(row, column=column, blocks=len(table.seeds))
        line.append(_markdown_number(found))
        if column in cells.published_columns(table):
            line += map(_markdown, cells.published_cells(row, column=column, table=table))
    return line


def _markdown_number(found: Cell | None) -> str:
    if found is None:
        return numbers.NOT_MEASURED
    return (f"**{found.text}**" if found.best else found.text) + (f" ({found.missing})" if found.missing else "")


def _markdown(text: str) -> str:
    """Escape what Markdown would read as markup; an underscore inside a word is none."""
    escaped = re.sub(r"([\\`*~\[\]|])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def as_latex(table: Table) -> str:
    """Return a table as a booktabs `tabular`, to be put in a `table` environment; needs no other package."""
    names = [*_leading_headings(table), *_number_headings(table)]
    sides = "".join("l" if name in WORDS else "r" for name in names)
    lines = [f"% {table.title}".replace("\n", " "), rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
    lines += [_latex_line([latex(name) for name in names]), r"\midrule"]
    lines += [_latex_line(_latex_row(row, table=table)) for row in table.rows]
    lines += [r"\bottomrule"]
    lines += [rf"\multicolumn{{{len(names)}}}{{l}}{{\footnotesize {latex(note)}}} \\" for note in cells.notes(table)]
    return "\n".join([*lines, r"\end{tabular}", ""])


def _latex_line(parts: Sequence[str]) -> str:
    return " & ".join(parts) + r" \\"


def _latex_row(row: Row, *, table: Table) -> list[str]:
    mark = r"$^\dagger$" if row.trained_with_other_code else ""
    line = [latex(row.label) + mark, *map(latex, cells.facts(row, table=table).values())]
    for column in table.columns:
        found = cells.cell(row, column=column, blocks=len(table.seeds))
        line.append(_latex_number(found))
        if column in cells.published_columns(table):
            line += map(latex, cells.published_cells(row, column=column, table=table))
    return line


def _latex_number(found: Cell | None) -> str:
    if found is None:
        return numbers.NOT_MEASURED
    number = found.number if found.std is None else rf"{found.number} \pm {found.std}"
    marked = rf"\mathbf{{{number}}}" if found.best else number
    return f"${marked}$" + (f" ({found.missing})" if found.missing else "")


def latex(text: str) -> str:
    """Escape text for LaTeX; the signs this report uses become its own."""
    return "".join(TEX.get(character, character) for character in text)
