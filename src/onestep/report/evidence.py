"""The content of the results page, read from results/ and the checked config; no metric is computed here."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from onestep import files
from onestep.config.reading import experiment_document, read_experiment
from onestep.config.sections import Experiment
from onestep.models import Snapshot, Teacher, parse_model
from onestep.report.table import Row, Table, read_rows, without_rows
from onestep.results import Results


@dataclass(frozen=True, kw_only=True)
class TableEvidence:
    """A table, and for each of its rows the images of the first block of seeds and the drawn column over training."""

    table: Table
    samples: tuple[Mapping[int, np.ndarray], ...]  # uint8 [H, W, C] by seed; empty for none
    curves: tuple[tuple[tuple[float, float], ...], ...]  # (images seen, value) of its measured snapshots, ascending
    curve_seeds: str


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """A trained run: its summary.json, log.jsonl and run.yaml (`resolved`). `is_tuned`: it started from a teacher."""

    name: str
    objective: str
    is_tuned: bool
    summary: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]
    resolved: str


@dataclass(frozen=True, kw_only=True)
class StudyEvidence:
    """A study: the content of its JSON, and its figure as the text of an SVG file; empty for none."""

    name: str
    found: Mapping[str, Any]
    figure: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The content of the page. `stages` has the seconds of the jobs of each rule, the longest rule first."""

    experiment: Experiment
    config_text: str
    tables: tuple[TableEvidence, ...]
    studies: tuple[StudyEvidence, ...]
    runs: tuple[RunEvidence, ...]
    stages: Mapping[str, Sequence[float]]
    environment: Mapping[str, str]
    reproduce: tuple[str, ...]


def read_evidence(results: Path | str, *, config: Path, benchmarks: Path | str, reproduce: Sequence[str]) -> Evidence:
    """Read the content of the page; `benchmarks`, Snakemake's `{rule}/....tsv`, need not exist.

    ConfigError: The config has an error. ValueError: A file is damaged.
    """
    layout, experiment = Results(Path(results)), read_experiment(config)
    trained = [run for run in experiment.runs if layout.summary(run).exists()]
    runs = tuple(_read_run(run, layout=layout, experiment=experiment) for run in trained)
    return Evidence(
        experiment=experiment,
        config_text=config.read_text(encoding="utf-8"),
        tables=tuple(_read_table(name, layout=layout, experiment=experiment) for name in experiment.tables),
        studies=tuple(_read_study(name, layout=layout) for name in experiment.studies),
        runs=runs,
        stages=read_stages(benchmarks),
        environment=_environment(runs),
        reproduce=tuple(reproduce),
    )


def layout_of(name: str, *, experiment: Experiment) -> Table:
    """Return a table of the config without rows."""
    document = experiment_document(experiment)
    drawn = experiment.tables[name].drawn
    return without_rows(name, document["tables"][name], drawn=drawn, metrics=document["metrics"])


def _read_table(name: str, *, layout: Results, experiment: Experiment) -> TableEvidence:
    table = replace(layout_of(name, experiment=experiment), rows=read_rows(layout.table(name, ".json")))
    asked, source = experiment.tables[name].curves, table.columns[table.drawn]
    seeds = table.seeds[0] if asked is None else asked.seeds
    curves = [_read_curve(row, source=source, seeds=seeds, layout=layout, experiment=experiment) for row in table.rows]
    samples = tuple(_read_samples(row, seeds=table.seeds[0], layout=layout) for row in table.rows)
    return TableEvidence(table=table, samples=samples, curves=tuple(curves), curve_seeds=seeds)


def _read_samples(row: Row, *, seeds: str, layout: Results) -> dict[int, np.ndarray]:
    if not row.measured or not (path := layout.grid(row.measured[0], str(row.sampler), seeds)).exists():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return dict(zip(archive["seeds"].tolist(), archive["pixels"], strict=True))


def _read_curve(
    row: Row, *, source: str, seeds: str, layout: Results, experiment: Experiment
) -> tuple[tuple[float, float], ...]:
    """Return (images seen, value) of each measured snapshot; of a family of runs the mean where all are measured.

    A network from outside has seen 0 images.
    """
    metric, _, value = source.partition(".")
    found: dict[int, list[float]] = {}
    for model in map(parse_model, row.measured):
        for images in (0,) if isinstance(model, Teacher) else experiment.runs[model.name].snapshots:
            point = model if isinstance(model, Teacher) else Snapshot(name=model.name, images=images, ema=model.ema)
            path = layout.metric(point, str(row.sampler), seeds, metric)
            if path.exists():
                found.setdefault(images, []).append(float(files.read_json(path)["values"][value]))
    complete = {images: values for images, values in found.items() if len(values) == len(row.measured)}
    return tuple((float(images), fmean(complete[images])) for images in sorted(complete))


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _read_run(name: str, *, layout: Results, experiment: Experiment) -> RunEvidence:
    run, log = experiment.runs[name], layout.log(name)
    return RunEvidence(
        name=name,
        objective=run.objective.name,
        is_tuned=run.teacher is not None,
        summary=files.read_json(layout.summary(name)),
        log=read_log(log) if log.exists() else (),
        resolved=_text_of(layout.run_config(name)),
    )


def read_log(path: Path | str) -> tuple[dict[str, Any], ...]:
    """Read a log of one JSON record per line. ValueError: A line is not JSON."""
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: got no JSON ({error}). Fix: train the run again") from error
    return tuple(records)


def _read_study(name: str, *, layout: Results) -> StudyEvidence:
    found, figure = files.read_json(layout.study(name, ".json")), _text_of(layout.study(name, ".svg"))
    return StudyEvidence(name=name, found=found, figure=figure)


def read_stages(benchmarks: Path | str) -> dict[str, list[float]]:
    """Read Snakemake's benchmark files: the seconds of each job by rule, the rule with the longest time first."""
    seconds: dict[str, list[float]] = {}
    for path in sorted(Path(benchmarks).glob("*/**/*.tsv")):
        rule = path.relative_to(benchmarks).parts[0]
        with path.open(encoding="utf-8") as file:
            seconds.setdefault(rule, []).extend(float(line["s"]) for line in csv.DictReader(file, delimiter="\t"))
    return dict(sorted(seconds.items(), key=lambda stage: (-sum(stage[1]), stage[0])))


def _environment(runs: Sequence[RunEvidence]) -> dict[str, str]:
    keys = {"Trained on": "device", "PyTorch": "torch", "Python": "python"}
    found = {
        heading: ", ".join(sorted({str(run.summary[key]) for run in runs if key in run.summary}))
        for heading, key in keys.items()
        if any(key in run.summary for run in runs)
    }
    return found | {"Page made with": f"Python {platform.python_version()}, NumPy {np.__version__}"}
