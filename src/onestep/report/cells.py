"""The texts of a table's cells and notes, shared by Markdown, LaTeX and the page."""

from __future__ import annotations

from dataclasses import dataclass

from onestep.models import average_suffix
from onestep.report import numbers
from onestep.report.table import Row, Table

DAGGER = "\N{DAGGER}"
DOUBLE_DAGGER = "\N{DOUBLE DAGGER}"
SECTION = "\N{SECTION SIGN}"
PILCROW = "\N{PILCROW SIGN}"
REFERENCE = "\N{REFERENCE MARK}"
ARROWS = {"lower": "\N{DOWNWARDS ARROW}", "higher": "\N{UPWARDS ARROW}"}
NOT_HERE, NOT_PUBLISHED, NOT_RUN = "not trained here", "not published", "not run here"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A measured number as text. `missing` reads "2 of 3 blocks", or is empty; `difference` is to `published`.

    `trained_on`: the row was trained on the features of the number.
    """

    number: str
    std: str | None
    best: bool
    missing: str
    published: str | None
    difference: str | None
    trained_on: bool = False

    @property
    def text(self) -> str:
        """The number with its deviation: 2.31 ± 0.04."""
        return self.number if self.std is None else f"{self.number} {numbers.PLUS_MINUS} {self.std}"

    @property
    def mark(self) -> str:
        """The mark behind the number; mostly empty."""
        return f" {REFERENCE}" if self.trained_on else ""


def cell(row: Row, *, column: str, table: Table) -> Cell | None:
    """Return the texts of a number; None if it was not measured."""
    found, blocks = row.numbers[column], len(table.seeds)
    if found.shown is None:
        return None
    number, std = numbers.measured(found.shown, table.deviation(row, column))
    complete = table.show == "first" or found.blocks == blocks
    published = row.published.get(column)
    return Cell(
        number=number,
        std=std,
        best=found.is_best,
        missing="" if complete else f"{found.blocks} of {blocks} blocks",
        published=None if published is None else f"{published:.15g}",
        difference=None if published is None else numbers.difference(found.shown, published, ours_as_text=number),
        trained_on=column in row.trained_on,
    )


def published_cells(row: Row, *, column: str, table: Table) -> tuple[str, str]:
    """Return the published number, with the index of its source, and the difference to it."""
    if column not in row.published:
        return NOT_PUBLISHED, NOT_PUBLISHED
    found = cell(row, column=column, table=table)
    mark = sources(table).get(row.sources.get(column, ""))
    published = f"{row.published[column]:.15g}" + (f" [{mark}]" if mark else "")
    return published, absent(row, column) if found is None or found.difference is None else found.difference


def absent(row: Row, column: str) -> str:
    """Return the text for a number that is not shown: missing, damaged, or not measured."""
    return row.numbers[column].lost or numbers.NOT_MEASURED


def sources(table: Table) -> dict[str, int]:
    """Number the sources of published numbers in order of appearance."""
    named = (row.sources[column] for row in table.rows for column in table.columns if column in row.sources)
    return {source: number for number, source in enumerate(dict.fromkeys(named), start=1)}


def published_columns(table: Table) -> tuple[str, ...]:
    """Return the columns that have a published number in any row."""
    return tuple(column for column in table.columns if any(column in row.published for row in table.rows))


def title_of(column: str, *, table: Table) -> str:
    """Return a column's heading with the arrow of its better direction."""
    mark = f" {DOUBLE_DAGGER}" if precisions(column, table=table) else ""
    return f"{numbers.heading(column)} {ARROWS[table.directions[column]]}{mark}"


def precisions(column: str, *, table: Table) -> list[str]:
    """Return the arithmetic of a column's features where it is not float32."""
    return sorted({each for row in table.rows if (each := row.numbers[column].precision) is not None})


def facts(row: Row, *, table: Table) -> dict[str, str]:
    """Return a row's facts by heading; the headings are the same for all rows of a table."""
    found = {"sampler": f"{row.sampler or NOT_RUN}{f' {PILCROW}' if row.images_in else ''}"}
    if table.dataset is None:
        found["dataset"] = row.dataset
    found |= {
        "NFE": NOT_PUBLISHED if row.nfe is None else str(row.nfe),
        "images": (row.images or untrained(row)) if row.images_seen is None else f"{row.images_seen:,}",
        "frozen": untrained(row) if row.frozen_share is None else numbers.share(row.frozen_share),
        "snapshot": row.snapshot_policy or untrained(row),
    }
    if any(shows_further_ema(each) for each in table.rows):
        found["EMA"] = untrained(row) if row.ema is None else average_text(row.ema)
    return found


def shows_further_ema(row: Row) -> bool:
    """Whether a row shows another EMA than the main one of its run."""
    return row.ema is not None and str(row.snapshot).endswith(average_suffix(_as_named(row.ema)))


def average_text(ema: float) -> str:
    """Return the half-life of an EMA, or below 1 the relative standard deviation of an average, in words."""
    return f"{100 * ema:.3g} % of the training" if ema < 1 else f"{ema:,.15g} images"


def _as_named(ema: float) -> float:
    return ema if ema < 1 else int(ema)


def untrained(row: Row) -> str:
    """Return the text for a training fact of a network that this pipeline did not train, or whose record is lost."""
    return row.lost or (NOT_PUBLISHED if row.run is None else NOT_HERE)


def notes(table: Table) -> list[str]:
    """Return the notes below a table: its blocks of seeds, its marks and its sources."""
    used = [direction for direction in ARROWS if direction in table.directions.values()]
    meanings = ", ".join(f"{ARROWS[direction]} {direction} is better" for direction in used)
    within = "" if table.dataset is not None else " within its dataset; datasets are not compared"
    found = [_blocks(table), f"Bold: the best of its column{within} ({meanings})."]
    found += [f"{numbers.heading(column)}: against {images}." for column, images in table.against.items()]
    families = [row for row in table.rows if row.runs]
    if any(len(row.runs) > 1 for row in families):
        members = ", ".join(f"{row.label}: {len(row.runs)}" for row in families)
        found.append(f"Mean {numbers.PLUS_MINUS} standard deviation over runs ({members}).")
    if any(row.trained_with_other_code for row in table.rows):
        found.append(f"{DAGGER} Trained with other code: the training code has changed since this snapshot was made.")
    if any(row.fast for row in table.rows):
        found.append(f"{SECTION} Trained with `fast: true`, in another arithmetic than the published one.")
    if any(row.run is None for row in table.rows):
        found.append("Not run here: another method, with the numbers of its authors.")
    found += [
        f"{DOUBLE_DAGGER} {numbers.heading(column)}: features computed in {', '.join(names)}, not in float32."
        for column in table.columns
        if (names := precisions(column, table=table))
    ]
    if others := [f"{row.label} ({row.sampler}) in {row.images_in}" for row in table.rows if row.images_in]:
        found.append(f"{PILCROW} Images not computed in float32 alone: {', '.join(others)}.")
    found += _leaks(table)
    found += [f"{row.label}: {fault}." for row in table.rows for fault in row.faults]
    return [*found, *(f"[{number}] {source}" for source, number in sources(table).items())]


def _leaks(table: Table) -> list[str]:
    """Return the notes on numbers in features that rows were trained on."""
    seen = {column for row in table.rows for column in row.trained_on}
    if not seen:
        return []
    found = [f"{REFERENCE} Trained on these features: the number is not independent of the loss."]
    if seen == set(table.columns):
        found.append("No column has features that no row was trained on, so the table does not rank its rows.")
    return found


def _blocks(table: Table) -> str:
    count, blocks = len(table.seeds), ", ".join(table.seeds)
    if count == 1:
        return f"One block of seeds ({blocks})."
    others = "the JSON has mean, deviation, first, best and worst block"
    return {
        "mean": f"Mean {numbers.PLUS_MINUS} standard deviation over {count} blocks of seeds ({blocks}).",
        "first": f"First of {count} blocks of seeds ({blocks}); {others}.",
        "best": f"Best of {count} blocks of seeds ({blocks}), a biased estimate; {others}.",
    }[table.show]
