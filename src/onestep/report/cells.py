"""What stands in a table's cells and below it, in plain words; `formats` and `page` dress it."""

from __future__ import annotations

from dataclasses import dataclass

from onestep.models import average_suffix
from onestep.report import numbers
from onestep.report.table import Row, Table

DAGGER = "\N{DAGGER}"
DOUBLE_DAGGER = "\N{DOUBLE DAGGER}"
ARROWS = {"lower": "\N{DOWNWARDS ARROW}", "higher": "\N{UPWARDS ARROW}"}
OTHER_CODE = "Trained with other code: the training code has changed since this snapshot was made."


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A measured number as text.

    Attributes:
        number: What the table shows of the blocks of seeds.
        std: Their standard deviation; None for a single block.
        best: Whether no other row of the column is better.
        missing: E.g. "2 of 3 blocks"; empty where every block was measured.
        published: The number in the literature, as given; None where the config names none.
        difference: Ours minus the published one, with sign; None where there is none.
    """

    number: str
    std: str | None
    best: bool
    missing: str
    published: str | None
    difference: str | None

    @property
    def text(self) -> str:
        """The number with its deviation: 2.31 +- 0.04."""
        return self.number if self.std is None else f"{self.number} {numbers.PLUS_MINUS} {self.std}"


NOT_HERE, NOT_PUBLISHED = "not trained here", "not published"
ELSEWHERE = "not run here"


def cell(row: Row, *, column: str, blocks: int) -> Cell | None:
    """Return what stands in a cell; None where nothing was measured. `blocks` is the number the table asks for."""
    value = row.metrics[column]
    if value is None:
        return None
    number, std = numbers.measured(value, row.deviation(column))
    # Of the first block alone, others that were not measured change nothing.
    whole = row.show == "first" or row.blocks[column] == blocks
    published = row.published.get(column)
    return Cell(
        number=number,
        std=std,
        best=column in row.best,
        missing="" if whole else f"{row.blocks[column]} of {blocks} blocks",
        published=None if published is None else numbers.plain(published),
        difference=None if published is None else numbers.difference(value, published, ours_as_text=number),
    )


def published_cells(row: Row, *, column: str, table: Table) -> tuple[str, str]:
    """Return the published number, marked with its source, and our difference to it, in words where one is missing."""
    if column not in row.published:
        return NOT_PUBLISHED, NOT_PUBLISHED
    found = cell(row, column=column, blocks=len(table.seeds))
    mark = sources(table).get(row.sources.get(column, ""))
    theirs = numbers.plain(row.published[column]) + (f" [{mark}]" if mark else "")
    return theirs, numbers.NOT_MEASURED if found is None or found.difference is None else found.difference


def sources(table: Table) -> dict[str, int]:
    """Number the sources of a table's published numbers in the order in which they appear."""
    named = (row.sources[column] for row in table.rows for column in table.columns if column in row.sources)
    return {source: number for number, source in enumerate(dict.fromkeys(named), start=1)}


def published_columns(table: Table) -> tuple[str, ...]:
    """Return the columns in which a row has a number from the literature."""
    return tuple(column for column in table.columns if any(column in row.published for row in table.rows))


def title_of(column: str, *, table: Table) -> str:
    """Return a column's heading with the arrow of the direction that is better."""
    mark = f" {DOUBLE_DAGGER}" if precisions(column, table=table) else ""
    return f"{numbers.heading(column)} {ARROWS[table.directions[column]]}{mark}"


def precisions(column: str, *, table: Table) -> list[str]:
    """Return how the features behind a column were computed, where not in float32, the reported path."""
    return sorted({row.precisions[column] for row in table.rows if column in row.precisions})


def facts(row: Row, *, table: Table) -> dict[str, str]:
    """Return what stands beside a row's numbers, by heading: the same headings for all rows of a table."""
    told = {"sampler": row.sampler or ELSEWHERE}
    if table.dataset is None:
        told["dataset"] = row.dataset
    told |= {
        "evaluations": NOT_PUBLISHED if row.nfe is None else str(row.nfe),
        "images": images_seen(row),
        "frozen": frozen_share(row),
        "snapshot": row.snapshot_policy or untrained(row),
    }
    if has_averages(table):
        told["average"] = untrained(row) if row.ema is None else f"{row.ema:,.15g} images"
    return told


def has_averages(table: Table) -> bool:
    """Whether a row shows another average than its run's main one, so that readers need to know which."""
    return any(row.ema is not None and str(row.snapshot).endswith(average_suffix(int(row.ema))) for row in table.rows)


def untrained(row: Row) -> str:
    """Return what is said of a row's training where it was not here."""
    return NOT_PUBLISHED if row.run is None else NOT_HERE


def images_seen(row: Row) -> str:
    """Return the images a row's network was trained on here; of another method, what its authors say."""
    if row.images_seen is None:
        return row.images or untrained(row)
    return numbers.count(row.images_seen)


def frozen_share(row: Row) -> str:
    """Return the share of a row's parameters that never moved."""
    return untrained(row) if row.frozen_share is None else numbers.share(row.frozen_share)


def notes(table: Table) -> list[str]:
    """Return the sentences below a table: which blocks of seeds its numbers stand for, what the marks mean."""
    sentences = [blocks_shown(table), _marks(table)]
    if any(row.trained_with_other_code for row in table.rows):
        sentences.append(f"{DAGGER} {OTHER_CODE}")
    if any(row.run is None for row in table.rows):
        sentences.append(f"{ELSEWHERE[:1].upper()}{ELSEWHERE[1:]}: another method, with the numbers of its authors.")
    faster = {column: precisions(column, table=table) for column in table.columns}
    sentences += [
        f"{DOUBLE_DAGGER} {numbers.heading(column)}: features computed in {', '.join(names)}, not in float32."
        for column, names in faster.items()
        if names
    ]
    return [*sentences, *(f"[{number}] {source}" for source, number in sources(table).items())]


def blocks_shown(table: Table) -> str:
    """Return which number of the blocks of seeds stands in the cells."""
    count, blocks = len(table.seeds), ", ".join(table.seeds)
    if count == 1:
        return f"One block of seeds ({blocks})."
    others = "mean, deviation, first, best and worst block stand in the JSON"
    return {
        "mean": f"Mean {numbers.PLUS_MINUS} standard deviation over {count} blocks of seeds ({blocks}).",
        "first": f"The first of {count} blocks of seeds ({blocks}); {others}.",
        "best": f"The best of {count} blocks of seeds ({blocks}), which flatters; {others}.",
    }[table.show]


def _marks(table: Table) -> str:
    used = [direction for direction in ARROWS if direction in table.directions.values()]
    meanings = [f"{ARROWS[direction]} {direction} is better" for direction in used]
    within = "" if table.dataset is not None else " within its dataset; datasets are not compared"
    return f"Bold: the best of its column{within} ({', '.join(meanings)})."
