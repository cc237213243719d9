"""Tables: one row for each model and sampler, one number for each column, summarized over blocks of seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onestep import components, files
from onestep.metrics import Direction
from onestep.models import parse_model
from onestep.records import differing, fact_of, images_in

Measurement = Mapping[str, Any]
"""The content of a metric file: `model`, `sampler`, `seeds`, `images`, `values`, `features`, `reference`,
`feature_weights_sha256`, `precision`, `arithmetic`."""

Measurements = Mapping[str, Sequence[Measurement]]
"""The measurements of one model by metric, one for each measured block of seeds."""

Shown = Literal["mean", "first", "best"]
"""The mean over the blocks of seeds, the first block (the protocol of D2O), or the best one (the protocol of EDM)."""

# Keys of a row in tables/{table}.json that hold one entry for each column, with the field of `Number`.
_BLOCKS = ("mean", "std", "first_block", "best_block", "worst_block", "blocks")
_BY_COLUMN = {"metrics": "shown", **{name: name for name in _BLOCKS}}


_COLUMNS = {str: (float, None)}
_ROW = {
    **dict.fromkeys(("label", "dataset"), str),
    **dict.fromkeys(("run", "sampler", "images", "snapshot", "snapshot_policy", "model"), (str, None)),
    **dict.fromkeys(("nfe", "images_seen"), (int, None)),
    **dict.fromkeys(("ema", "frozen_share"), (float, None)),
    **dict.fromkeys(_BY_COLUMN, _COLUMNS),
    "blocks": {str: int},
    "trained_with_other_code": bool,
    "best": [str],
    "published": {str: float},
    **dict.fromkeys(("sources", "precisions", "lost_numbers?"), {str: str}),
    **dict.fromkeys(("models?", "faults?", "trained_on?"), [str]),
    **dict.fromkeys(("lost?", "images_in?"), str),
    "fast?": bool,
}


@dataclass(frozen=True, kw_only=True)
class Number:
    """A metric of one row over its blocks of seeds; None marks a value that was not measured.

    In a row of several runs each run counts once, with its own shown value: `mean`, `std`, `best_block` and
    `worst_block` are then over runs, `first_block` is None, and `blocks` is the least number of blocks of a run.
    """

    shown: float | None = None  # the value in the table's cell
    mean: float | None = None
    std: float | None = None  # sample standard deviation (n - 1); None for fewer than two values
    first_block: float | None = None
    best_block: float | None = None  # in the direction of the column; the best of several noisy values is biased
    worst_block: float | None = None
    blocks: int = 0  # measured blocks
    is_best: bool = False  # no other row of the dataset is better; False where only one row has a number
    precision: str | None = None  # arithmetic of the features where it is not float32
    lost: str | None = None  # "missing" or "damaged": a file of its numbers, where none is shown


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: a run, a family of runs, a network from outside, or another method's published numbers."""

    run: str | None  # a run or family; the teacher's name for a network from outside; None for another method
    sampler: str | None  # its name in config.yaml; None for another method
    label: str
    dataset: str
    nfe: int | None  # function evaluations per image; None if another method does not publish them
    images_seen: int | None = None  # training images of this pipeline; None for a network from outside
    images: str | None = None  # training images of another method, as published ("~400 M")
    snapshot: str | None = None  # `{run}@{images}`, with `-ema{half_life}` for a further EMA, or the teacher's name
    snapshot_policy: str | None = None  # "last", or "lowest FD of 4, seeds 0-1999"; None if nothing was selected
    model: str | None = None  # the `{model}` in paths below results/: `snapshot`, or the name of the selection
    ema: float | None = None  # half-life in images; None for a network from outside
    frozen_share: float | None = None  # of the parameters, in [0, 1]; None for a network from outside
    trained_with_other_code: bool = False  # the training code has changed since the snapshot was made
    fast: bool = False  # trained with the preset `fast` of a run: in another arithmetic than published
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)  # from the literature, by column
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trained_on: tuple[str, ...] = ()  # columns whose feature networks were part of its training
    models: tuple[str, ...] = ()  # of a family, one for each run
    images_in: str | None = None  # precisions in which its images were computed, unless that is float32 alone
    lost: str | None = None  # "missing" or "damaged": the summary of its run
    faults: tuple[str, ...] = ()  # its files that are missing or damaged, each in one line
    numbers: Mapping[str, Number] = dataclasses.field(default_factory=dict)

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs of a family; empty for every other row."""
        return tuple(parse_model(model).name for model in self.models)

    @property
    def measured(self) -> tuple[str, ...]:
        """The models whose numbers it shows: those of a family, or one; none for another method."""
        return self.models or (() if self.model is None else (self.model,))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with their layout, in the order of config.yaml."""

    name: str
    title: str
    caption: str = ""
    dataset: str | None  # the reference dataset; None if each row names one
    seeds: tuple[str, ...]  # the blocks of seeds, such as "0-1999"
    show: Shown
    columns: Mapping[str, str]  # `metric.value` by column
    directions: Mapping[str, Direction]
    drawn: str  # the column that charts show
    against: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by column: generated images
    rows: tuple[Row, ...] = ()

    def deviation(self, row: Row, column: str) -> float | None:
        """Return the deviation to show beside a number; None for the value of a single block."""
        return row.numbers[column].std if self.show == "mean" or row.models else None


def column_directions(columns: Mapping[str, str], *, metrics: Mapping[str, str]) -> dict[str, Direction]:
    """Return the better direction of each column, `metric.value`. ValueError: The metric has no such value."""
    directions: dict[str, Direction] = {}
    for column, source in columns.items():
        metric, _, value = source.partition(".")
        values = components.outline("metrics", metrics[metric]).values
        if value not in values:
            raise ValueError(
                f"columns.{column}: got {source!r}, expected a value of metric {metric}. "
                f"Fix: choose {' or '.join(f'{metric}.{each}' for each in values)}"
            )
        directions[column] = values[value]
    return directions


def without_rows(
    name: str, layout: Mapping[str, Any], *, drawn: str, metrics: Mapping[str, Mapping[str, Any]]
) -> Table:
    """Return a table of config.yaml from its block (`layout`) and those of the metrics."""
    classes = {metric: block["name"] for metric, block in metrics.items()}
    return Table(
        name=name,
        title=layout["title"],
        caption=layout.get("caption") or "",
        dataset=layout.get("dataset"),
        seeds=tuple(layout["seeds"]),
        show=layout.get("show", "mean"),
        columns=layout["columns"],
        directions=column_directions(layout["columns"], metrics=classes),
        drawn=drawn,
        against={
            column: against
            for column, source in layout["columns"].items()
            if (against := _against(metrics[source.partition(".")[0]].get("against")))
        },
    )


def _against(block: Mapping[str, Any] | None) -> str:
    """Return the images that a metric compares with in the place of real ones, for a note; empty for none."""
    if block is None:
        return ""
    seeds = f"seeds {block['seeds']}" if block.get("seeds") else "of the same seeds"
    return f"images of {block.get('run') or block.get('teacher')} by {block['sampler']}, {seeds}"


def fill(table: Table, found: Sequence[tuple[Row, Sequence[Measurements]]]) -> Table:
    """Return the table with the rows and the measurements of their runs, the best of each column marked.

    A row may have for a column a `Number` with what is `lost` of it.

    ValueError: A measurement lacks a column's value, or measurements of one column and dataset differ in reference,
    features, feature weights, precision or number of images.
    """
    for column, source in table.columns.items():
        _check_comparable(found, column=column, metric=source.partition(".")[0])
    rows = []
    for row, runs in found:
        numbers = {column: _number(runs, column=column, table=table) for column in table.columns}
        for column, lost in row.numbers.items():
            if numbers[column].shown is None:
                numbers[column] = dataclasses.replace(numbers[column], lost=lost.lost)
        precisions = sorted({images_in(each) for run in runs for blocks in run.values() for each in blocks})
        other = " and ".join(precisions) if precisions not in ([], ["float32"]) else None
        rows.append(dataclasses.replace(row, numbers=numbers, images_in=other))
    return dataclasses.replace(table, rows=tuple(_mark_best(row, rows, table=table) for row in rows))


def _number(runs: Sequence[Measurements], *, column: str, table: Table) -> Number:
    source, direction = table.columns[column], table.directions[column]
    found = []
    for run in runs:
        values = _values(run, source)
        first, blocks = values.get(table.seeds[0]), len(values)
        found.append(_summary([*values.values()], show=table.show, first=first, blocks=blocks, direction=direction))
    if len(found) > 1:
        shown = [each.shown for each in found if each.shown is not None]
        blocks = min(each.blocks for each in found)
        found = [_summary(shown, show="mean", first=None, blocks=blocks, direction=direction)]
    metric = source.partition(".")[0]
    precisions = {str(each.get("precision") or "float32") for run in runs for each in run.get(metric, ())} - {"float32"}
    return dataclasses.replace(found[0], precision=min(precisions, default=None))


def _summary(values: Sequence[float], *, show: Shown, first: float | None, blocks: int, direction: Direction) -> Number:
    if not values:
        return Number()
    best, worst = _extremes(direction)
    mean = statistics.fmean(values)
    return Number(
        shown={"mean": mean, "first": first, "best": best(values)}[show],
        mean=mean,
        std=statistics.stdev(values) if len(values) > 1 else None,
        first_block=first,
        best_block=best(values),
        worst_block=worst(values),
        blocks=blocks,
    )


def _extremes(direction: Direction) -> tuple[Any, Any]:
    return (min, max) if direction == "lower" else (max, min)


def _values(measurements: Measurements, source: str) -> dict[str, float]:
    metric, _, value = source.partition(".")
    for each in measurements.get(metric, ()):
        if value not in each["values"]:
            raise ValueError(
                f"{_place(each, metric)}: got values {', '.join(each['values'])}, expected {value!r}. "
                "Fix: delete the file to measure it again"
            )
    return {each["seeds"]: float(each["values"][value]) for each in measurements.get(metric, ())}


def _mark_best(row: Row, rows: Sequence[Row], *, table: Table) -> Row:
    """Return the row with `is_best` set in the columns where no row of its dataset has a better number."""
    numbers = {}
    for column, number in row.numbers.items():
        rivals = [each.numbers[column].shown for each in rows if each.dataset == row.dataset]
        compared = [value for value in rivals if value is not None]
        best, _ = _extremes(table.directions[column])
        is_best = number.shown is not None and len(compared) > 1 and number.shown == best(compared)
        numbers[column] = dataclasses.replace(number, is_best=is_best)
    return dataclasses.replace(row, numbers=numbers)


def _check_comparable(found: Iterable[tuple[Row, Sequence[Measurements]]], *, column: str, metric: str) -> None:
    firsts: dict[str, Measurement] = {}
    fix = "Fix: delete the outdated file to measure it again"
    for row, runs in found:
        for run in runs:
            _check_blocks(run.get(metric, ()), metric=metric)
        for each in (each for run in runs for each in run.get(metric, ())):
            first = firsts.setdefault(row.dataset, each)
            for key in differing(first, each):
                one, other = fact_of(first, key), fact_of(each, key)
                raise ValueError(
                    f"column {column}: {key} differs: {one!r} in {_place(first, metric)}, "
                    f"{other!r} in {_place(each, metric)}. {fix}"
                )


def _check_blocks(blocks: Sequence[Measurement], *, metric: str) -> None:
    """Refuse two blocks of seeds with the same images: one is a copy, and the deviation would be too small."""
    places: dict[str, str] = {}
    for each in blocks:
        digest, place = each.get("pixels_sha256"), _place(each, metric)
        if digest is not None and places.setdefault(digest, place) != place:
            raise ValueError(f"{place}: got the images of {places[digest]}, expected others. Fix: sample both again")


def _place(measurement: Measurement, metric: str) -> str:
    return f"metrics/{measurement['model']}/{measurement['sampler']}/{measurement['seeds']}.{metric}.json"


def as_json(table: Table) -> list[dict[str, Any]]:
    """Return the rows as tables/{table}.json holds them."""
    return [_row_as_json(row, show=table.show) for row in table.rows]


def _row_as_json(row: Row, *, show: Shown) -> dict[str, Any]:
    facts = {key: getattr(row, key) for key in _row_keys()}
    published = {key: facts.pop(key) for key in ("published", "sources", "frozen_share", "trained_with_other_code")}
    numbers = row.numbers.items()
    lost = {column: each.lost for column, each in numbers if each.lost}
    faults = {"lost": row.lost, "lost_numbers": lost, "faults": list(row.faults)}
    return {
        **facts,
        "show": show,
        **{key: {column: getattr(each, name) for column, each in numbers} for key, name in _BY_COLUMN.items()},
        "best": [column for column, each in numbers if each.is_best],
        **{key: dict(value) if isinstance(value, Mapping) else value for key, value in published.items()},
        "precisions": {column: each.precision for column, each in numbers if each.precision},
        **({"fast": True} if row.fast else {}),
        **({"trained_on": list(row.trained_on)} if row.trained_on else {}),
        **({"models": list(row.models), "runs": list(row.runs)} if row.models else {}),
        **({"images_in": row.images_in} if row.images_in else {}),
        **{key: value for key, value in faults.items() if value},
    }


def _row_keys() -> list[str]:
    others = ("models", "numbers", "lost", "faults", "fast", "images_in", "trained_on")
    return [field.name for field in dataclasses.fields(Row) if field.name not in others]


def read_rows(path: Path) -> tuple[Row, ...]:
    """Read the rows of tables/{table}.json.

    ValueError: The file is no table, or its digest, if `tables/{table}.sha256` has one, is that of another content.
    """
    rows = tuple(_row_from_json(row) for row in files.read_json(path, [_ROW]))
    recorded = recorded_digests(path)
    if path.name in recorded and files.sha256_of_file(path) != recorded[path.name]:
        raise ValueError(f"{path}: got another content than was written. Fix: delete it to make the table again")
    return rows


def recorded_digests(table: Path) -> dict[str, str]:
    """Return the digests of the files of a table by their names, from the list that `sha256sum -c` reads."""
    path = table.with_suffix(".sha256")
    lines = files.read_text(path).splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _row_from_json(row: Mapping[str, Any]) -> Row:
    numbers = {
        column: Number(
            **{name: row[key].get(column) for key, name in _BY_COLUMN.items() if key != "blocks"},
            blocks=row["blocks"].get(column, 0),
            is_best=column in row["best"],
            precision=row["precisions"].get(column),
            lost=row.get("lost_numbers", {}).get(column),
        )
        for column in row["metrics"]
    }
    return Row(
        **{key: row[key] for key in _row_keys()},
        models=tuple(row.get("models", ())),
        numbers=numbers,
        images_in=row.get("images_in"),
        fast=row.get("fast", False),
        trained_on=tuple(row.get("trained_on", ())),
        lost=row.get("lost"),
        faults=tuple(row.get("faults", ())),
    )
