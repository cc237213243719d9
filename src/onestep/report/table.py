"""Tables: one row for each (run, sampler), one column for each metric; each number stands for some blocks of seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onestep import components, files
from onestep.metrics import Direction

Measurement = Mapping[str, Any]
"""The content of one metric file: `seeds`, `images`, `values`, `features`, `reference`, `feature_weights_sha256`,
`precision`."""

Shown = Literal["mean", "first", "best"]
"""Which number of several blocks of seeds a table shows: their mean with its deviation, that of the first block (the
paper's protocol), or the best (EDM's)."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a row before its numbers are read.

    Attributes:
        run: The run, or the teacher's name where the network came from outside; None for another method, of which
            published numbers are all there is.
        sampler: The sampler's name in config.yaml; None for another method.
        label: What readers call the row; the run's name where the config gives none.
        dataset: The real images it is compared with.
        nfe: Network evaluations for one image; None where another method's are not given.
        images_seen: Images the network was trained on by this pipeline; None where it came trained.
        images: What another method trained on, in words ("~400 M"); None for all other rows.
        snapshot: The network: `{run}@{images}`, with `-ema{half_life}` for another average, or the teacher's name.
        snapshot_policy: How the snapshot was selected: "last", or "lowest FD of 4, seeds 0-1999"; None where there
            was none to select.
        model: The `{model}` of the paths below results/: `snapshot`, or what it is called where it was chosen.
        ema: Half-life in images of the average that the snapshot holds; None where nothing was trained here.
        frozen_share: Share of the parameters that never moved, in [0, 1]; None where nothing was trained here.
        trained_with_other_code: Whether the training code has changed since the snapshot was made.
        published: Numbers from the literature by column.
        sources: Where these stand, by column, as far as the config says.
        measurements: Contents of the metric files by metric name, one for each block of seeds that was measured.
    """

    run: str | None
    sampler: str | None
    label: str
    dataset: str
    nfe: int | None
    images_seen: int | None
    images: str | None
    snapshot: str | None
    snapshot_policy: str | None
    model: str | None
    ema: float | None
    frozen_share: float | None
    trained_with_other_code: bool
    published: Mapping[str, float]
    sources: Mapping[str, str]
    measurements: Mapping[str, Sequence[Measurement]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table, as it stands in tables/{table}.json; see `Entry` for what is not named here.

    Attributes:
        show: Which of the following numbers `metrics` holds.
        metrics: The number that is shown, by column; None where it was not measured.
        mean: Mean over the blocks; None where nothing was measured.
        std: Sample standard deviation (n - 1) over the blocks; None for fewer than two.
        first_block: The number of the table's first block of seeds; None where this one was not measured.
        best_block: The best of the blocks, in the direction of the column; the best of several noisy numbers flatters.
        worst_block: The worst of them.
        blocks: Number of blocks that were measured.
        best: The columns in which no other row of its dataset is better; empty where only one row has a number.
        precisions: How the features of a column were computed, where not in float32.
    """

    run: str | None
    sampler: str | None
    label: str
    dataset: str
    nfe: int | None
    images_seen: int | None
    images: str | None
    snapshot: str | None
    snapshot_policy: str | None
    model: str | None
    ema: float | None
    show: Shown
    metrics: Mapping[str, float | None]
    mean: Mapping[str, float | None]
    std: Mapping[str, float | None]
    first_block: Mapping[str, float | None]
    best_block: Mapping[str, float | None]
    worst_block: Mapping[str, float | None]
    blocks: Mapping[str, int]
    best: tuple[str, ...]
    published: Mapping[str, float]
    sources: Mapping[str, str]
    frozen_share: float | None
    trained_with_other_code: bool
    precisions: Mapping[str, str] = field(default_factory=dict)

    def deviation(self, column: str) -> float | None:
        """Return the deviation that stands beside the number: a single block has none to show."""
        return self.std[column] if self.show == "mean" else None


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """A number over blocks of seeds; see `Row`."""

    mean: float | None
    std: float | None
    first: float | None
    best: float | None
    worst: float | None
    blocks: int

    def shown(self, show: Shown) -> float | None:
        """Return the number that a table shows."""
        return {"mean": self.mean, "first": self.first, "best": self.best}[show]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows and how to read them.

    Attributes:
        name: Its name in config.yaml.
        title: Its title there.
        dataset: The real images it compares with; None where each row has its own.
        seeds: The blocks of seeds, as written: "0-1999".
        show: Which number of these blocks stands in the cells.
        columns: `metric.value` by column, in the order they are shown.
        directions: Which direction is better, by column.
        rows: The rows, in the order of config.yaml.
    """

    name: str
    title: str
    dataset: str | None
    seeds: tuple[str, ...]
    show: Shown
    columns: Mapping[str, str]
    directions: Mapping[str, Direction]
    rows: tuple[Row, ...]


def tabulate(config: Mapping[str, Any], *, name: str, entries: Sequence[Entry]) -> Table:
    """Return the table `name` of a parsed config.yaml, filled with `entries`.

    Raises:
        ValueError: A metric gives no such value, or numbers of one column cannot be compared.
    """
    layout = config["tables"][name]
    directions = column_directions(layout["columns"], metrics=config["metrics"])
    rows = build_rows(
        entries,
        columns=layout["columns"],
        directions=directions,
        show=layout.get("show", "mean"),
        first=str(layout["seeds"][0]),
    )
    return _lay_out(config, name=name, directions=directions, rows=rows)


def read_table(path: Path | str, *, config: Mapping[str, Any]) -> Table:
    """Read `tables/{table}.json` back; titles and directions come from the parsed config.yaml."""
    name = Path(path).stem
    rows = [Row(**{**row, "best": tuple(row["best"])}) for row in files.read_json(path)]
    directions = column_directions(config["tables"][name]["columns"], metrics=config["metrics"])
    return _lay_out(config, name=name, directions=directions, rows=rows)


def _lay_out(
    config: Mapping[str, Any], *, name: str, directions: Mapping[str, Direction], rows: Iterable[Row]
) -> Table:
    layout = config["tables"][name]
    return Table(
        name=name,
        title=layout.get("title", name),
        dataset=layout.get("dataset"),
        seeds=tuple(str(block) for block in layout["seeds"]),
        show=layout.get("show", "mean"),
        columns=dict(layout["columns"]),
        directions=directions,
        rows=tuple(rows),
    )


def column_directions(columns: Mapping[str, str], *, metrics: Mapping[str, Any]) -> dict[str, Direction]:
    """Return the direction that is better for each column, as the metrics' classes state it.

    Args:
        columns: `metric.value` by column.
        metrics: The section `metrics` of config.yaml.

    Raises:
        ValueError: The metric has no such value.
    """
    directions = {}
    for column, source in columns.items():
        metric, _, value = source.partition(".")
        values = components.outline("metrics", metrics[metric]["name"]).values
        if value not in values:
            raise ValueError(f"column {column}: metric {metric} gives no {value!r}; it gives {', '.join(values)}")
        directions[column] = values[value]
    return directions


def build_rows(
    entries: Sequence[Entry],
    *,
    columns: Mapping[str, str],
    directions: Mapping[str, Direction],
    show: Shown,
    first: str,
) -> list[Row]:
    """Sum the blocks of seeds up and mark the best of each column; datasets are not compared with each other.

    Args:
        entries: What is known of the rows.
        columns: `metric.value` by column.
        directions: Which direction is better, by column.
        show: Which number of the blocks is shown.
        first: The first block of seeds, as written.

    Raises:
        ValueError: Numbers of one column and dataset were measured against different references, through different
            feature weights or on different numbers of images; or a measurement lacks the value a column asks for.
    """
    for column, source in columns.items():
        refuse_mixed_sources(entries, column=column, metric=source.partition(".")[0])
    found = [
        {column: _summary(entry, source, directions[column], first=first) for column, source in columns.items()}
        for entry in entries
    ]
    best = {}
    for dataset in dict.fromkeys(entry.dataset for entry in entries):
        compared = [each for entry, each in zip(entries, found, strict=True) if entry.dataset == dataset]
        best[dataset] = {
            column: _best([each[column].shown(show) for each in compared], directions[column]) for column in columns
        }
    return [
        _row(entry, columns=columns, found=each, best=best[entry.dataset], show=show)
        for entry, each in zip(entries, found, strict=True)
    ]


def _row(
    entry: Entry,
    *,
    columns: Mapping[str, str],
    found: Mapping[str, _Summary],
    best: Mapping[str, float | None],
    show: Shown,
) -> Row:
    shown = {column: each.shown(show) for column, each in found.items()}
    return Row(
        run=entry.run,
        sampler=entry.sampler,
        label=entry.label,
        dataset=entry.dataset,
        nfe=entry.nfe,
        images_seen=entry.images_seen,
        images=entry.images,
        snapshot=entry.snapshot,
        snapshot_policy=entry.snapshot_policy,
        model=entry.model,
        ema=entry.ema,
        show=show,
        metrics=shown,
        mean={column: each.mean for column, each in found.items()},
        std={column: each.std for column, each in found.items()},
        first_block={column: each.first for column, each in found.items()},
        best_block={column: each.best for column, each in found.items()},
        worst_block={column: each.worst for column, each in found.items()},
        blocks={column: each.blocks for column, each in found.items()},
        best=tuple(column for column in columns if shown[column] is not None and shown[column] == best[column]),
        published=dict(entry.published),
        sources=dict(entry.sources),
        frozen_share=entry.frozen_share,
        trained_with_other_code=entry.trained_with_other_code,
        precisions={column: name for column, source in columns.items() if (name := _precision(entry, source))},
    )


def _precision(entry: Entry, source: str) -> str | None:
    """Return how the features behind a column were computed; None where in float32, or where nothing was measured."""
    found = {measured.get("precision") for measured in entry.measurements.get(source.partition(".")[0], ())}
    return next(iter(found - {None, "float32"}), None)


def _summary(entry: Entry, source: str, direction: Direction, *, first: str) -> _Summary:
    """Sum up the value `metric.value` over the measured blocks."""
    found = _values(entry, source)
    values = [value for _, value in found]
    best, worst = (min, max) if direction == "lower" else (max, min)
    return _Summary(
        mean=statistics.fmean(values) if values else None,
        std=statistics.stdev(values) if len(values) > 1 else None,
        first=next((value for seeds, value in found if seeds == first), None),
        best=best(values, default=None),
        worst=worst(values, default=None),
        blocks=len(values),
    )


def _values(entry: Entry, source: str) -> list[tuple[str, float]]:
    """Return the value `metric.value` of each measured block, with the block's seeds."""
    metric, _, value = source.partition(".")
    measurements = entry.measurements.get(metric, ())
    for measurement in measurements:
        known = measurement["values"]
        if value not in known:
            place = _place(entry, measurement, metric)
            raise ValueError(f"{place}: no value {value!r}, only {', '.join(known)}; delete it to measure it again")
    return [(measurement["seeds"], float(measurement["values"][value])) for measurement in measurements]


def _best(shown: Sequence[float | None], direction: Direction) -> float | None:
    """Return the best number; None unless at least two rows can be compared."""
    numbers = [number for number in shown if number is not None]
    if len(numbers) < 2:
        return None
    return min(numbers) if direction == "lower" else max(numbers)


def refuse_mixed_sources(entries: Sequence[Entry], *, column: str, metric: str) -> None:
    """Raise ValueError unless all measurements of `metric` on a dataset are comparable, naming two that are not."""
    firsts: dict[str, tuple[str, Measurement]] = {}
    found = [(entry, measurement) for entry in entries for measurement in entry.measurements.get(metric, ())]
    for entry, measurement in found:
        place = _place(entry, measurement, metric)
        first_place, first = firsts.setdefault(entry.dataset, (place, measurement))
        for key in ("features", "feature_weights_sha256", "precision", "reference", "images"):
            if measurement.get(key) != first.get(key):
                raise ValueError(
                    f"column {column}: {key} is {first.get(key)!r} in {first_place} but {measurement.get(key)!r} in "
                    f"{place}; such numbers cannot stand in one column; delete the outdated file to measure it again"
                )


def _place(entry: Entry, measurement: Measurement, metric: str) -> str:
    return f"metrics/{entry.model}/{entry.sampler}/{measurement['seeds']}.{metric}.json"


def read_measurements(
    metrics_folder: Path | str, *, model: str, sampler: str, seeds: Sequence[str], metrics: Iterable[str]
) -> dict[str, list[Measurement]]:
    """Read the metric files of a row that exist, by metric name, one for each block of seeds."""
    folder = Path(metrics_folder) / model / sampler
    paths = {metric: [folder / f"{block}.{metric}.json" for block in seeds] for metric in metrics}
    return {metric: [files.read_json(path) for path in found if path.exists()] for metric, found in paths.items()}


def as_json(table: Table) -> list[dict[str, Any]]:
    """Return the rows as tables/{table}.json holds them."""
    return [dataclasses.asdict(row) for row in table.rows]
