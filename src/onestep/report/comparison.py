"""What differs between two measurements, two runs, or two results folders: as tables, and as curves of both."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from onestep.figures import svg
from onestep.files import replacing, write_text
from onestep.models import Snapshot, parse_model
from onestep.published import run_folder
from onestep.records import (
    differing,
    fact_of,
    found_at,
    images_in,
    iter_log,
    read_measurement,
    read_run_config,
    read_summary,
)
from onestep.report.charts import Chart, Series, averaged, draw
from onestep.results import Results

_ABSENT = "-"
_DIGEST = re.compile("[0-9a-f]{40,}")
_COLOURS = (0, 2)  # blue and orange
_FACTS = ("images_seen", "parameters", "frozen_share", "seconds", "world_size", "device", "code")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `onestep compare` prints and draws."""

    names: tuple[str, str]  # of the two sides, as headings
    tables: Mapping[str, Sequence[Sequence[Any]]]  # by title: rows of a quantity, both values and their difference
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    comparable: bool = True

    def text(self) -> str:
        """Return the tables, aligned, one line a quantity."""
        parts = [] if self.tables else ["Nothing differs."]
        for title, rows in self.tables.items():
            width = 4 if any(row[3] != "" for row in rows) else 3
            headings = [title, *self.names, "difference"][:width]
            shown = [[row[0], *map(_shown, row[1:width])] for row in rows]
            align = ("left", "right", "right", "right")[: len(headings)]
            parts.append(tabulate(shown, headers=headings, tablefmt="simple", disable_numparse=True, colalign=align))
        return "\n\n".join(filter(None, [*parts, "\n".join(self.notes)]))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Number:
    """One number of one block of seeds."""

    model: str
    name: str  # `sampler metric.value`
    seeds: str
    value: float
    record: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """A run's folder as far as it is there."""

    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    measured: Mapping[int, Sequence[_Number]]  # by images, of snapshots of the main EMA
    faults: Sequence[str]  # what is missing or damaged


def compare(first: Path, second: Path) -> Comparison:
    """Compare two measurements (.json), two runs (folders or names) or two results folders.

    ValueError: The two are of different kinds, or have nothing in common.
    """
    kinds = [_kind(path) for path in (first, second)]
    if kinds[0] != kinds[1]:
        fix = "Fix: compare two of one kind"
        raise ValueError(f"{first}, {second}: got {kinds[0]} and {kinds[1]}, expected the same of both. {fix}")
    if kinds[0] == "a measurement":
        return _measurements(first, second)
    one, other = _results(first), _results(second)
    if kinds[0] == "a results folder" and one is not None and other is not None:
        return _folders(one, other)
    return _runs(run_folder(first), run_folder(second))


def write_picture(comparison: Comparison, output: Path) -> None:
    """Draw the curves of both sides as `.svg` or `.png`. ValueError: Another ending, or there are no curves."""
    check_picture(output)
    if not comparison.charts:
        raise ValueError(f"{output}: got no curves to draw, expected runs with a log or measured snapshots")
    figure = draw(comparison.charts)
    if output.suffix == ".svg":
        write_text(output, svg(figure))
    else:
        with replacing(output) as temporary:
            figure.savefig(temporary, format="png", dpi=192)


def check_picture(output: Path) -> None:
    """Raise ValueError unless the name of a picture ends in `.svg` or `.png`."""
    if output.suffix not in (".svg", ".png"):
        raise ValueError(f"--output: got {output}, expected a name that ends in .svg or .png")


def _kind(path: Path) -> str:
    if path.suffix == ".json" and not path.is_dir():
        return "a measurement"
    if path.is_dir() and not (path / "run.yaml").exists() and _results(path) is not None:
        return "a results folder"
    return "a run"


def _results(path: Path) -> Results | None:
    """Return the layout of a results folder, or of the working directory that it is in."""
    for root in (path, path / "results"):
        if (root / "runs").is_dir() or (root / "metrics").is_dir():
            return Results(root)
    return None


def _measurements(first: Path, second: Path) -> Comparison:
    one, other = _measurement(first), _measurement(second)
    common = [name for name in one["values"] if other["values"].get(name) is not None]
    if not common:
        expected, got = (", ".join(each["values"]) for each in (one, other))
        raise ValueError(f"{second}: got {got}, expected a value of {first}: {expected}. Fix: compare others")
    rows = [_row(name, one["values"][name], other["values"][name]) for name in common]
    unequal = (["metric"] if one.get("metric") != other.get("metric") else []) + differing(one, other)
    facts = [row for fact in unequal for row in _fact_rows(fact, fact_of(one, fact), fact_of(other, fact))]
    tables = {"value": [["images of", _origin(one), _origin(other), ""], *rows]}
    note = "The values are not comparable: the facts above differ." if facts else ""
    computed = _computed(one, other)
    return Comparison(
        names=_names(first, second),
        tables=tables | ({"fact": facts} if facts else {}),
        notes=tuple(filter(None, (note, computed))),
        comparable=not unequal,
    )


def _measurement(path: Path) -> Mapping[str, Any]:
    try:
        return read_measurement(path)
    except ValueError as error:
        fix = "Fix: choose a file of results/metrics/ or of `onestep evaluate`"
        raise ValueError(f"{path}: got no measurement ({error}). {fix}") from error


def _origin(measurement: Mapping[str, Any]) -> str:
    if "source" in measurement:  # by `onestep evaluate`
        return str(measurement["source"])
    found = [
        measurement[key] for key in ("dataset", "input", "model", "sampler") if isinstance(measurement.get(key), str)
    ]
    return ", ".join(found + ([f"seeds {measurement['seeds']}"] if "seeds" in measurement else [])) or "no name"


def _fact_rows(name: str, one: Any, other: Any) -> Iterator[list[Any]]:
    """Yield the leaves in which two facts differ."""
    ours, theirs = _flat(one, name), _flat(other, name)
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            yield _row(key, ours.get(key), theirs.get(key))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists of mappings by their dotted names."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        items = list(enumerate(value))
    else:
        return {name: value}
    return {k: v for key, inner in items for k, v in _flat(inner, f"{name}.{key}" if name else str(key)).items()}


def _runs(first: Path, second: Path) -> Comparison:
    sides, names = (_run(first), _run(second)), _names(first, second)
    training = [_row(fact, sides[0].summary.get(fact), sides[1].summary.get(fact)) for fact in _FACTS]
    training += [_row(f"last {name}", *values) for name, values in _last_losses(sides).items()]
    at = {images for side in sides for images in side.measured}
    common = [images for images in at if all(images in side.measured for side in sides)]
    newest = [max(common or side.measured, default=None) for side in sides]
    numbers_of = [side.measured.get(images, ()) if images else () for side, images in zip(sides, newest, strict=True)]
    measured, unequal, computed = _compared(*numbers_of)
    shown = " and ".join(dict.fromkeys(f"{images:,}" for images in newest if images is not None))
    tables = {
        "config": list(_fact_rows("", _settings(sides[0]), _settings(sides[1]))),
        "training": [row for row in training if (row[1], row[2]) != (None, None)],
        f"measured at {shown} images": measured,
    }
    return Comparison(
        names=names,
        tables={title: rows for title, rows in tables.items() if rows},
        notes=(*sides[0].faults, *sides[1].faults, *unequal, *computed),
        charts=(*_metric_charts(sides, names), *_loss_charts(sides, names)),
        comparable=not unequal,
    )


def _run(folder: Path, measured: Sequence[_Number] | None = None) -> _Run:
    """Read a run; parts that are not there yet are empty. `measured` has all numbers of its results folder."""
    _, config = read_run_config(folder / "run.yaml")
    run = config["run"]
    summary, fault = found_at(folder / "summary.json", lambda path: read_summary(path, run=run, keys=()))
    log, log_fault = found_at(folder / "log.jsonl", lambda path: list(iter_log(path)))
    by_images: dict[int, list[_Number]] = {}
    for number in _measured_in(Results(folder.absolute().parents[1])) if measured is None else measured:
        model = _snapshot(number.model)
        if model is not None and model.name == run and model.ema is None:
            by_images.setdefault(model.images, []).append(number)
    faults = [each for each in (fault, log_fault) if each]
    return _Run(config=config, summary=summary or {}, log=log or [], measured=by_images, faults=faults)


def _settings(run: _Run) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in ("run", "snapshots")}


def _compared(first: Sequence[_Number], second: Sequence[_Number]) -> tuple[list[list[Any]], list[str], list[str]]:
    """Return rows of means over the blocks of seeds that both sides have, else over each's own.

    Also return a line for each quantity whose numbers are not comparable, and one for images of unequal precision.
    """
    rows, unequal, computed = [], [], []
    for name in dict.fromkeys(number.name for number in [*first, *second]):
        sides = [[number for number in side if number.name == name] for side in (first, second)]
        common = {number.seeds for number in sides[0]} & {number.seeds for number in sides[1]}
        kept = [[number for number in side if not common or number.seeds in common] for side in sides]
        rows.append(_row(name, *(statistics.fmean(n.value for n in side) if side else None for side in kept)))
        if all(kept) and (facts := differing(kept[0][0].record, kept[1][0].record)):
            unequal.append(f"not comparable: {name} differs in {', '.join(facts)}")
        computed += [_computed(kept[0][0].record, kept[1][0].record)] if all(kept) else []
    return rows, unequal, list(dict.fromkeys(filter(None, computed)))


def _computed(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return a line where the images of two measurements were computed in different precisions, else none."""
    found = [images_in(each) for each in (one, other)]
    return f"The images were computed in {found[0]} and {found[1]}." if found[0] != found[1] else ""


def _measured_in(results: Results) -> list[_Number]:
    """Return every number that is measured in a results folder."""
    found = []
    for path in sorted(results.root.glob("metrics/*/*/*.json")):
        record = read_measurement(path)
        for value, number in record["values"].items():
            name = f"{path.parent.name} {record.get('metric', '')}.{value}"
            seeds = str(record.get("seeds", ""))
            found.append(
                _Number(model=path.parents[1].name, name=name, seeds=seeds, value=float(number), record=record)
            )
    return found


def _snapshot(name: str) -> Snapshot | None:
    try:
        model = parse_model(name)
    except ValueError:
        return None
    return model if isinstance(model, Snapshot) else None


def _last_losses(sides: tuple[_Run, _Run]) -> dict[str, tuple[Any, Any]]:
    """Return by name the mean of each loss over the last tenth of a log."""
    found = []
    for side in sides:
        tail = side.log[-max(1, len(side.log) // 10) :]
        names = dict.fromkeys(name for record in tail for name in record.get("losses", {}))
        values = {
            name: [r["losses"][name] for r in tail if r.get("losses", {}).get(name) is not None] for name in names
        }
        found.append({f"{name} loss": statistics.fmean(each) for name, each in values.items() if each})
    return _joined(*found)


def _loss_charts(sides: tuple[_Run, _Run], names: tuple[str, str]) -> Iterator[Chart]:
    for name in dict.fromkeys(name for side in sides for record in side.log for name in record.get("losses", {})):
        lines = []
        for side, title, colour in zip(sides, names, _COLOURS, strict=True):
            records = ((record["images_seen"], record.get("losses", {}).get(name)) for record in side.log)
            points = averaged([(float(seen), float(value)) for seen, value in records if value is not None])
            if points:
                lines.append(Series(name=title, points=tuple(points), colour=colour))
        if lines:
            yield Chart(title=f"{name.replace('_', ' ')} loss", x="images", series=tuple(lines))


def _metric_charts(sides: tuple[_Run, _Run], names: tuple[str, str]) -> Iterator[Chart]:
    """Yield a chart for each number that one side measured at several snapshots, of the block of seeds with most."""
    everything = [number for side in sides for each in side.measured.values() for number in each]
    for name in dict.fromkeys(number.name for number in everything):
        blocks = [number.seeds for number in everything if number.name == name]
        seeds = max(dict.fromkeys(blocks), key=blocks.count)
        lines = []
        for side, title, colour in zip(sides, names, _COLOURS, strict=True):
            found = {
                i: n.value for i, each in side.measured.items() for n in each if (n.name, n.seeds) == (name, seeds)
            }
            if found:
                points = tuple((float(images), value) for images, value in sorted(found.items()))
                lines.append(Series(name=title, points=points, colour=colour, kind="marked"))
        if any(len(line.points) > 1 for line in lines):
            yield Chart(title=f"{name}, seeds {seeds}", x="images", series=tuple(lines))


def _folders(first: Results, second: Results) -> Comparison:
    names, notes, charts = _names(first.root, second.root), list[str](), list[Chart]()
    found = [_measured_in(results) for results in (first, second)]
    runs = [{path.parent.name for path in results.root.glob("runs/*/run.yaml")} for results in (first, second)]
    tables, comparable = dict[str, Any](), True
    models = [list(dict.fromkeys(number.model for number in side)) for side in found]
    for model in [each for each in models[0] if each in models[1]]:
        rows, unequal, computed = _compared(*([number for number in side if number.model == model] for side in found))
        tables.setdefault("measured", []).extend([f"{model} {row[0]}", *row[1:]] for row in rows)
        notes += [line.replace("comparable: ", f"comparable: {model} ") for line in unequal]
        notes += [f"{model}: {line}" for line in computed]
        comparable = comparable and not unequal
    for run in sorted(runs[0] & runs[1]):
        sides = _run(first.run(run), found[0]), _run(second.run(run), found[1])
        tables[f"config of {run}"] = list(_fact_rows("", _settings(sides[0]), _settings(sides[1])))
        both = f"{names[0]}: {run}", f"{names[1]}: {run}"
        charts += [*_metric_charts(sides, both), *_loss_charts(sides, both)]
    if not tables:
        raise ValueError(f"{second.root}: got no run and no number of {first.root}, expected at least one of both")
    for side, other in ((0, 1), (1, 0)):
        alone = [*sorted(runs[side] - runs[other]), *(each for each in models[side] if each not in models[other])]
        notes += [f"only in {names[side]}: {', '.join(dict.fromkeys(alone))}"] if alone else []
    shown = {title: rows for title, rows in tables.items() if rows}
    return Comparison(names=names, tables=shown, notes=tuple(notes), charts=tuple(charts), comparable=comparable)


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other])}


def _row(name: str, one: Any, other: Any) -> list[Any]:
    """Return a quantity, both values and, of numbers, the second minus the first."""
    both = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (one, other))
    return [name, one, other, _Signed(other - one) if both else ""]


class _Signed(float):
    """A difference, shown with its sign."""


def _shown(cell: Any) -> str:
    if cell is None:
        return _ABSENT
    if isinstance(cell, _Signed):
        if cell == 0:
            return "0"
        return ("+" if cell > 0 else "-") + _number(abs(float(cell)))
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, (int, float)):
        return _number(cell)
    if isinstance(cell, (list, tuple)):
        return f"[{', '.join(map(_shown, cell))}]"
    text = str(cell)
    return f"{text[:12]}..." if _DIGEST.fullmatch(text) else text


def _number(value: float) -> str:
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.5g}"


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Return the shortest endings of two paths that differ, as headings."""
    one, other = first.absolute().parts, second.absolute().parts
    for length in range(1, max(len(one), len(other)) + 1):
        if one[-length:] != other[-length:]:
            return "/".join(one[-length:]), "/".join(other[-length:])
    return "first", "second"
