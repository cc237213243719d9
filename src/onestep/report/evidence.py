"""The content of the results page, read from results/ and the checked config; no metric is computed here."""

from __future__ import annotations

import csv
import functools
import io
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from onestep import files
from onestep.archive import array_names, published_arrays, read_arrays
from onestep.checkpoints.digests import checked
from onestep.config.reading import config_files, experiment_document, read_experiment
from onestep.config.sections import Experiment
from onestep.models import Snapshot, Teacher, parse_model
from onestep.plan.report import table_rows
from onestep.records import Content, found_at, iter_log, read_run_config, read_summary, read_value
from onestep.report.datasets import DatasetEvidence, read_dataset
from onestep.report.table import Number, Row, Table, read_rows, without_rows
from onestep.report.watched import WatchedRun, watched_runs
from onestep.results import Results, identity_at


@dataclass(frozen=True, kw_only=True)
class TableEvidence:
    """A table, and for each of its rows the images of the first block of seeds and the drawn column over training."""

    table: Table
    samples: tuple[Mapping[int, np.ndarray], ...]  # uint8 [H, W, C] by seed; empty for none
    curves: tuple[tuple[tuple[float, float], ...], ...]  # (images seen, value) of its measured snapshots, ascending
    curve_seeds: str
    lost: tuple[str, ...] = ()  # by row, "missing" or "damaged" where there should be images; empty for none


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
    datasets: tuple[DatasetEvidence, ...]  # those of runs and tables that are prepared here
    tables: tuple[TableEvidence, ...]
    studies: tuple[StudyEvidence, ...]
    runs: tuple[RunEvidence, ...]
    stages: Mapping[str, Sequence[float]]
    environment: Mapping[str, str]
    reproduce: tuple[str, ...]
    faults: tuple[str, ...] = ()  # files that are missing or damaged, each in one line
    watched: tuple[WatchedRun, ...] = ()  # runs that still train


def read_evidence(results: Path | str, *, config: Path, benchmarks: Path | str, reproduce: Sequence[str]) -> Evidence:
    """Read the content of the page; `benchmarks`, Snakemake's `{rule}/....tsv`, need not exist.

    ConfigError: The config has an error. ValueError: A file is damaged.
    """
    layout, experiment = Results(Path(results)), read_experiment(config)
    faults = _Faults()
    runs = tuple(
        filter(None, (_read_run(run, layout=layout, experiment=experiment, faults=faults) for run in experiment.runs))
    )
    studies = (
        _read_study(name, layout=layout, faults=faults)
        for name, study in experiment.studies.items()
        if not study.on_request or layout.study(name, ".json").exists()
    )
    datasets = (_read_dataset(name, layout=layout, faults=faults) for name in datasets_of(experiment))
    return Evidence(
        experiment=experiment,
        config_text=_texts(config_files(config)),
        datasets=tuple(filter(None, datasets)),
        tables=tuple(
            _read_table(name, layout=layout, experiment=experiment, runs=runs, faults=faults)
            for name in experiment.tables
        ),
        studies=tuple(filter(None, studies)),
        runs=runs,
        stages=read_stages(benchmarks, faults=faults),
        environment=_environment(runs),
        reproduce=tuple(reproduce),
        faults=tuple(dict.fromkeys(faults)),
        watched=tuple(watched_runs(layout, experiment.runs)),
    )


def datasets_of(experiment: Experiment) -> list[str]:
    """Return the datasets that tables compare with and runs train on."""
    tables = experiment.tables.values()
    compared = [table.dataset_of(row) for table in tables for row in table.rows]
    return list(dict.fromkeys([*compared, *(run.dataset for run in experiment.runs.values())]))


def _read_dataset(name: str, *, layout: Results, faults: _Faults) -> DatasetEvidence | None:
    card = layout.data(name, ".json")
    if not card.exists() and not card.is_symlink():
        return None
    return faults.read(card, functools.partial(read_dataset, name=name))


class _Faults(list[str]):
    """What is missing or damaged, each in one line."""

    def read(self, path: Path, read: Callable[[Path], Content]) -> Content | None:
        """Return the content of a file; None, and a line more, where it is missing or damaged."""
        content, fault = found_at(path, read)
        self.extend([fault] if fault else [])
        return content


def layout_of(name: str, *, experiment: Experiment) -> Table:
    """Return a table of the config without rows."""
    document = experiment_document(experiment)
    drawn = experiment.tables[name].drawn
    return without_rows(name, document["tables"][name], drawn=drawn, metrics=document["metrics"])


def _read_table(
    name: str, *, layout: Results, experiment: Experiment, runs: Sequence[RunEvidence], faults: _Faults
) -> TableEvidence:
    table, path = layout_of(name, experiment=experiment), layout.table(name, ".json")
    if path.exists() or path.is_symlink():
        table = replace(table, rows=read_rows(path))
    else:  # of a workflow that has not come so far
        rows = (_unmeasured(row, columns=table.columns, runs=runs) for row in table_rows(experiment, name))
        table = replace(table, rows=tuple(rows))
    if other := [row.label for row in table.rows if set(row.numbers) != set(table.columns)]:
        found = f"{layout.table(name, '.json')}: got other columns in row {other[0]!r}"
        raise ValueError(f"{found}, expected {', '.join(table.columns)}. Fix: delete it to make the table again")
    asked, source = experiment.tables[name].curves, table.columns[table.drawn]
    seeds = table.seeds[0] if asked is None else asked.seeds
    points = _Points(source=source, seeds=seeds, is_asked=asked is not None)
    curves = [_read_curve(row, points, layout=layout, experiment=experiment, faults=faults) for row in table.rows]
    faults += [f"{row.label}: {fault}" for row in table.rows for fault in row.faults]
    samples, lost = [], []
    for row in table.rows:
        known = len(faults)
        samples.append(_read_samples(row, seeds=table.seeds[0], layout=layout, faults=faults))
        lost.append(faults[-1].partition(":")[0] if len(faults) > known else "")
    return TableEvidence(table=table, samples=tuple(samples), curves=tuple(curves), curve_seeds=seeds, lost=tuple(lost))


def _unmeasured(planned: Mapping[str, Any], *, columns: Iterable[str], runs: Sequence[RunEvidence]) -> Row:
    """Return a row of the config without numbers; the facts of its training if that is finished."""
    row = Row(**{**planned, "models": tuple(planned.get("models", ()))}, snapshot=planned["model"])
    row = replace(row, numbers=dict.fromkeys(columns, Number()))
    if row.ema is None:  # not trained here
        return row
    for run in runs:
        if run.name in (row.run, *row.runs):
            share = 1 - run.summary["trainable"] / run.summary["parameters"]
            return replace(row, snapshot_policy="last", frozen_share=share)
    return replace(row, lost="not trained yet", images_seen=None)


def _read_samples(row: Row, *, seeds: str, layout: Results, faults: _Faults) -> dict[int, np.ndarray]:
    if not row.measured:
        return {}
    path = layout.grid(row.measured[0], str(row.sampler), seeds)
    is_measured = any(number.shown is not None for number in row.numbers.values())
    if not is_measured and not path.exists() and not path.is_symlink():
        return {}
    return faults.read(path, read_grid) or {}


def read_grid(path: Path) -> dict[int, np.ndarray]:
    """Read the images of a grid, uint8 [H, W, C] by seed. ValueError: It is damaged, or that of another block."""
    if "about" in array_names(path):
        arrays, about = read_arrays(path, ("seeds", "pixels"), about={"subject?": {str: str}})
    else:
        arrays, about = published_arrays(path, ("seeds", "pixels")) or {}, {}
    seeds, pixels = arrays.get("seeds"), arrays.get("pixels")
    if seeds is None or pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise ValueError(f"{path}: got no images, expected seeds and pixels uint8 [N, H, W, C]. Fix: sample again")
    if seeds.ndim != 1 or seeds.dtype.kind not in "iu" or len(seeds) != len(pixels) or not pixels.size:
        raise ValueError(f"{path}: got {list(seeds.shape)} seeds, expected {len(pixels)} numbers. Fix: sample again")
    place = identity_at(path)
    if place and about.get("subject") and about["subject"] != place:
        found = ", ".join(about["subject"].values())
        raise ValueError(f"{path}: got images of {found}. Fix: delete it to sample again")
    return dict(zip(seeds.tolist(), pixels, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Points:
    """What the curves of a table draw, `metric.value`; if the config requests it, each point should be there."""

    source: str
    seeds: str
    is_asked: bool


def _read_curve(
    row: Row, points: _Points, *, layout: Results, experiment: Experiment, faults: _Faults
) -> tuple[tuple[float, float], ...]:
    """Return (images seen, value) of each measured snapshot; of a family of runs the mean where all are measured.

    A network from outside has seen 0 images.
    """
    metric, _, value = points.source.partition(".")
    found: dict[int, list[float]] = {}
    read = functools.partial(read_value, value=value)
    missing: list[str] = []
    for model in map(parse_model, row.measured):
        for images in (0,) if isinstance(model, Teacher) else experiment.runs[model.name].snapshots:
            point = model if isinstance(model, Teacher) else Snapshot(name=model.name, images=images, ema=model.ema)
            path = layout.metric(point, str(row.sampler), points.seeds, metric)
            number, fault = found_at(path, read)
            if number is not None:
                found.setdefault(images, []).append(number)
            elif fault.startswith("damaged"):
                faults.append(fault)
            elif not isinstance(model, Teacher) and len(experiment.runs[model.name].snapshots) > 1:
                missing.append(fault)
    faults += missing if points.is_asked and found else []
    complete = {images: values for images, values in found.items() if len(values) == len(row.measured)}
    return tuple((float(images), fmean(complete[images])) for images in sorted(complete))


_SUMMARY = ("images_seen", "parameters", "trainable", "seconds", "world_size", "restarts", "spec", "code")


def _read_run(name: str, *, layout: Results, experiment: Experiment, faults: _Faults) -> RunEvidence | None:
    """Return a run; None if it is not trained yet, or its summary is missing or damaged."""
    run, summary = experiment.runs[name], layout.summary(name)
    is_trained = summary.exists() or summary.is_symlink() or layout.log(name).exists()
    read = functools.partial(read_summary, run=name, keys=_SUMMARY)
    found = faults.read(summary, read) if is_trained else None
    if found is None:
        return None
    return RunEvidence(
        name=name,
        objective=run.objective.name,
        is_tuned=run.teacher is not None,
        summary=found,
        log=faults.read(layout.log(name), read_log) or (),
        resolved=(faults.read(layout.run_config(name), functools.partial(read_run_config, run=name)) or ("", {}))[0],
    )


def read_log(path: Path | str) -> tuple[dict[str, Any], ...]:
    """Read a log of one JSON record per line. ValueError: It is empty, or a line is no record."""
    records = tuple(iter_log(checked(path)))
    if not records:
        raise ValueError(f"{path}: got no records, expected at least one. Fix: train the run again")
    return records


_STUDY = {
    **dict.fromkeys(("verdict", "rule"), str),
    **dict.fromkeys(("study?", "question?"), str),
    **dict.fromkeys(("numbers", "control"), dict),
    "choices": list,
}


def _read_study(name: str, *, layout: Results, faults: _Faults) -> StudyEvidence | None:
    found = faults.read(layout.study(name, ".json"), functools.partial(_read_findings, name=name))
    if found is None:
        return None
    return StudyEvidence(name=name, found=found, figure=faults.read(layout.study(name, ".svg"), read_svg) or "")


def _read_findings(path: Path, *, name: str) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(path, _STUDY)
    if found.get("study", name) != name:
        raise ValueError(f"{path}: got study {found['study']}, expected {name}. Fix: delete it to run it again")
    return found


def _texts(paths: Sequence[Path]) -> str:
    """Return the text of a config, and of those that it extends under their names."""
    first, *others = map(files.read_text, paths)
    return "\n".join([first, *(f"# {path}\n{text}" for path, text in zip(paths[1:], others, strict=True))])


def read_svg(path: Path) -> str:
    """Return the text of an SVG file. ValueError: It is none, or cut off."""
    text = files.read_text(path)
    if "<svg" not in text[:1000] or not text.rstrip().endswith("</svg>"):
        raise ValueError(f"{path}: got no whole SVG. Fix: delete it to draw it again")
    return text


def read_stages(benchmarks: Path | str, *, faults: list[str] | None = None) -> dict[str, list[float]]:
    """Read Snakemake's benchmark files: the seconds of each job by rule, the rule with the longest time first.

    A damaged file is left out; a line on it is added to `faults`.
    """
    seconds: dict[str, list[float]] = {}
    for path in sorted(Path(benchmarks).glob("*/**/*.tsv")):
        found, fault = found_at(path, _read_seconds)
        if found is not None:
            seconds.setdefault(path.relative_to(benchmarks).parts[0], []).extend(found)
        elif faults is not None:
            faults.append(fault)
    return dict(sorted(seconds.items(), key=lambda stage: (-sum(stage[1]), stage[0])))


def _read_seconds(path: Path) -> list[float]:
    try:
        found = [float(line["s"]) for line in csv.DictReader(io.StringIO(files.read_text(path)), delimiter="\t")]
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: got no times ({error}). Fix: delete it") from error
    if not all(math.isfinite(each) and each >= 0 for each in found):
        raise ValueError(f"{path}: got {found}, expected seconds. Fix: delete it")
    return found


def _environment(runs: Sequence[RunEvidence]) -> dict[str, str]:
    keys = {"Trained on": "device", "PyTorch": "torch", "Python": "python"}
    found = {
        heading: ", ".join(sorted({str(run.summary[key]) for run in runs if key in run.summary}))
        for heading, key in keys.items()
        if any(key in run.summary for run in runs)
    }
    return found | {"Page made with": f"Python {platform.python_version()}, NumPy {np.__version__}"}
