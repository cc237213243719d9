"""What the results page is made from, read from results/: nothing here computes a number of its own."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from onestep import files
from onestep.models import Snapshot, Teacher, average_suffix, parse_model
from onestep.report.table import Row, Table, read_table


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images of one row and block of seeds: `pixels` uint8 [N, H, W, C], `seeds` int64 [N]."""

    pixels: np.ndarray
    seeds: np.ndarray


@dataclass(frozen=True, kw_only=True)
class MetricCurve:
    """A column's value over the training of a row, on one block of seeds.

    Attributes:
        row: The row.
        points: (images seen, value), ascending; one point for a row without several snapshots.
    """

    row: Row
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class TableEvidence:
    """A table, what its rows draw, and how they got there.

    Attributes:
        table: The table.
        samples: Images of each row at the first block of seeds, in the order of the rows; None where there are none.
        curve_column: The column the curves show, and the one the claim is judged by.
        curve_seeds: The block of seeds they were measured on.
        curves: One for each row that has a measured point.
    """

    table: Table
    samples: tuple[Samples | None, ...]
    curve_column: str
    curve_seeds: str
    curves: tuple[MetricCurve, ...]


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """A trained run: its name, summary.json, the records of log.jsonl, and run.yaml as text."""

    name: str
    summary: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]
    resolved: str


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Time the jobs of one rule took, in seconds."""

    rule: str
    jobs: int
    total: float
    longest: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything the page shows.

    Attributes:
        config: The parsed config.yaml.
        config_text: The same, verbatim.
        tables: The tables, in the order of config.yaml.
        runs: The runs that were trained, in the order of config.yaml.
        stages: The time each stage took, the longest first.
        environment: Facts about the machine and the software, by name.
        reproduce: The commands that make this page again.
    """

    config: Mapping[str, Any]
    config_text: str
    tables: tuple[TableEvidence, ...]
    runs: tuple[RunEvidence, ...]
    stages: tuple[StageTime, ...]
    environment: Mapping[str, str]
    reproduce: tuple[str, ...]


def read_evidence(
    results: Path | str, *, config_text: str, benchmarks: Path | str, reproduce: Sequence[str]
) -> Evidence:
    """Read what the page shows.

    Args:
        results: The folder results/.
        config_text: config.yaml, verbatim.
        benchmarks: Snakemake's benchmark files, `{rule}/....tsv`; need not exist.
        reproduce: The commands that make this page again.
    """
    results = Path(results)
    config = yaml.safe_load(config_text)
    runs = tuple(read_run(results / "runs" / run) for run in config["runs"] if _is_trained(results / "runs" / run))
    return Evidence(
        config=config,
        config_text=config_text,
        tables=tuple(_read_table(results, config=config, name=name) for name in config["tables"]),
        runs=runs,
        stages=read_stages(benchmarks),
        environment=environment(runs),
        reproduce=tuple(reproduce),
    )


def _is_trained(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def _read_table(results: Path, *, config: Mapping[str, Any], name: str) -> TableEvidence:
    table = read_table(results / "tables" / f"{name}.json", config=config)
    asked = config["tables"][name].get("curves") or {}
    column = asked.get("column", next(iter(table.columns)))
    seeds = asked.get("seeds", table.seeds[0])
    curves = [_read_curve(results, row, source=table.columns[column], seeds=seeds) for row in table.rows]
    return TableEvidence(
        table=table,
        samples=tuple(_read_samples(results, row, seeds=table.seeds[0]) for row in table.rows),
        curve_column=column,
        curve_seeds=seeds,
        curves=tuple(curve for curve in curves if curve.points),
    )


def _read_samples(results: Path, row: Row, *, seeds: str) -> Samples | None:
    if row.model is None or row.sampler is None:
        return None
    path = results / "grids" / row.model / row.sampler / f"{seeds}.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return Samples(pixels=archive["pixels"], seeds=archive["seeds"])


def _read_curve(results: Path, row: Row, *, source: str, seeds: str) -> MetricCurve:
    """Return the measured points of a row: of every published snapshot of its run, or of the one that it names."""
    metric, _, value = source.partition(".")
    points = []
    for images, model in _snapshots(results, row):
        path = results / "metrics" / model / str(row.sampler) / f"{seeds}.{metric}.json"
        if path.exists():
            points.append((images, float(files.read_json(path)["values"][value])))
    return MetricCurve(row=row, points=tuple(points))


def _snapshots(results: Path, row: Row) -> list[tuple[int, str]]:
    """Return (images seen, model) of each snapshot, ascending; a network from outside counts as 0 images."""
    if row.model is None:
        return []
    model = parse_model(row.model)
    ema = None if isinstance(model, Teacher) else model.ema
    suffix = average_suffix(ema)
    found = (results / "runs" / model.name / "snapshots").glob(f"*{suffix}.safetensors")
    counts = [path.stem.removesuffix(suffix) for path in found]
    images = sorted(int(count) for count in counts if count.isdecimal())
    models = [(count, str(Snapshot(name=model.name, images=count, ema=ema))) for count in images]
    return models or [(row.images_seen or 0, row.model)]


def read_run(folder: Path) -> RunEvidence:
    """Read what a run left in results/runs/{run}/."""
    log, resolved = folder / "log.jsonl", folder / "run.yaml"
    return RunEvidence(
        name=folder.name,
        summary=files.read_json(folder / "summary.json"),
        log=read_log(log) if log.exists() else (),
        resolved=resolved.read_text() if resolved.exists() else "",
    )


def read_log(path: Path | str) -> tuple[dict[str, Any], ...]:
    """Read a log of one JSON record a line.

    Raises:
        ValueError: A line is not JSON; the message names the file and the line.
    """
    records = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); train the run again to rebuild it") from error
    return tuple(records)


def read_stages(benchmarks: Path | str) -> tuple[StageTime, ...]:
    """Add up Snakemake's benchmark files by rule, the rule that took longest first."""
    seconds: dict[str, list[float]] = {}
    for path in sorted(Path(benchmarks).glob("*/**/*.tsv")):
        rule = path.relative_to(benchmarks).parts[0]
        with path.open() as file:
            seconds.setdefault(rule, []).extend(float(line["s"]) for line in csv.DictReader(file, delimiter="\t"))
    stages = [
        StageTime(rule=rule, jobs=len(times), total=sum(times), longest=max(times)) for rule, times in seconds.items()
    ]
    return tuple(sorted(stages, key=lambda stage: (-stage.total, stage.rule)))


def environment(runs: Sequence[RunEvidence]) -> dict[str, str]:
    """Return what the runs were trained with, and the machine that made this page."""
    training = {
        heading: ", ".join(sorted({str(run.summary[key]) for run in runs if key in run.summary}))
        for heading, key in (
            ("Trained with PyTorch", "torch"),
            ("Trained with Python", "python"),
            ("Trained on", "device"),
        )
    }
    return {
        **{heading: values for heading, values in training.items() if values},
        "Page made with": f"Python {platform.python_version()}, NumPy {np.__version__}",
        "Page made on": f"{platform.system()} {platform.machine()}",
        "Processor": f"{processor()}, {os.cpu_count()} cores",
    }


def processor(cpuinfo: Path | str = "/proc/cpuinfo") -> str:
    """Return the processor's name as the system tells it."""
    path = Path(cpuinfo)
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
