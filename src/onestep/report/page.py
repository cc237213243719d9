"""The verb `report`: the results page, one HTML file without scripts and requests; its pictures are data URIs."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import median_high
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import onestep
from onestep import components, files
from onestep.config.reading import experiment_document, run_backbones
from onestep.config.sections import Experiment
from onestep.escapes import markup
from onestep.figures import COLOURS, svg
from onestep.report import cells, charts, command, numbers, pictures
from onestep.report.charts import Chart
from onestep.report.datasets import DatasetEvidence
from onestep.report.evidence import Evidence, RunEvidence, StudyEvidence, TableEvidence, datasets_of, read_evidence
from onestep.report.pictures import Panel, Panels, Picture, contact_sheet, shared_seeds
from onestep.report.rules import ruling
from onestep.report.table import Table

_MOST_COLUMNS, _WIDTH = 8, 560
_MOST_CLASSES = 20  # that are listed with their numbers of images


def report(
    *,
    config: Path = Path("config.yaml"),
    results: Path = Path("results"),
    benchmarks: Path = Path("benchmarks"),
    output: Path = Path("results/report/index.html"),
) -> int:
    """Write the results page from what is measured so far, and beside it the samples of each table as a picture.

    Args:
        config: The config.
        results: The results folder.
        benchmarks: Folder of Snakemake's benchmark files; may be absent.
        output: The page (.html); the pictures are `samples/{table}.png` beside it.
    """
    evidence = read_evidence(results, config=config, benchmarks=benchmarks, reproduce=command.lines(config))
    for shown in evidence.tables:
        with files.replacing(output.parent / "samples" / f"{shown.table.name}.png") as temporary:
            pictures.draw_samples(temporary, panels_of(shown, datasets=evidence.datasets))
    files.write_text(output, render(evidence))
    return 0


def render(evidence: Evidence) -> str:
    """Return the results page. The same evidence gives the same text."""
    loader = PackageLoader("onestep", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": numbers.duration, "count": "{:,}".format, "share": numbers.share}
    style = resources.files("onestep.report").joinpath("page.css").read_text(encoding="utf-8")
    style += "".join(f".c{index} {{ --c: {colour}; }}\n" for index, colour in enumerate(COLOURS))
    page = environment.get_template("page.html.jinja").render(
        cells=cells,
        heading=numbers.heading,
        colour=lambda index: f"c{index % len(COLOURS)}",
        css=Markup(style),
        title=title_of(evidence),
        datasets=[_dataset_view(dataset) for dataset in evidence.datasets],
        tables=[_table_view(shown, evidence=evidence) for shown in evidence.tables],
        studies=[_study_view(study) for study in evidence.studies],
        runs=evidence.runs,
        run_names=charts.run_names(evidence),
        run_facts=_cost(evidence.runs),
        colours=charts.run_colours(evidence),
        charts=[_chart_picture(chart) for chart in charts.log_charts(evidence)],
        stages=evidence.stages,
        environment=evidence.environment,
        inputs=experiment_document(evidence.experiment)["inputs"],
        config=evidence.config_text,
        reproduce=evidence.reproduce,
        faults=evidence.faults,
        watched=evidence.watched,
        version=onestep.__version__,
    )
    return markup(page)


def title_of(evidence: Evidence) -> str:
    """Return the title of the config, or one made of the datasets."""
    return evidence.experiment.title or f"Results on {' and '.join(datasets_of(evidence.experiment)) or 'no dataset'}"


def _dataset_view(dataset: DatasetEvidence) -> dict[str, Any]:
    facts = {
        "images": f"{dataset.images:,}",
        "resolution": f"{dataset.resolution} x {dataset.resolution} px",
        "channels": {1: "grey", 3: "RGB"}.get(dataset.channels, str(dataset.channels)),
        "classes": f"{len(dataset.per_class):,}" if dataset.per_class else "none (unlabelled)",
    }
    counts = [count for _, count in dataset.per_class]
    columns = min(16, max(4, 2 * _WIDTH // dataset.resolution))
    images = dataset.spread(4 * columns)
    alt = f"Real images of {dataset.name}"
    return {
        "name": dataset.name,
        "facts": facts,
        "classes": [f"{name}: {count:,}" for name, count in dataset.per_class[:_MOST_CLASSES]],
        "more": f"{min(counts):,} to {max(counts):,} images each" if len(counts) > _MOST_CLASSES else "",
        "picture": contact_sheet(images, columns=columns, width=2 * _WIDTH, alt=alt) if images else None,
        "shown": len(images),
    }


def _table_view(shown: TableEvidence, *, evidence: Evidence) -> dict[str, Any]:
    table, nfe = shown.table, charts.nfe_charts(shown.table)
    experiment, drawn = evidence.experiment, panels_of(shown, datasets=evidence.datasets)
    pictures = {panel.key: _panel_picture(panel, columns=drawn.columns) for panel in drawn.panels}
    rule = experiment.tables[table.name].rule
    datasets = dict.fromkeys(row.dataset for row in table.rows)
    return {
        "table": table,
        "names": [charts.row_name(row, table=table) for row in table.rows],
        "real": [(name, pictures[name]) for name in datasets if name in pictures],
        "images": [pictures.get(index) for index in range(len(table.rows))],
        "lost": shown.lost or ("",) * len(table.rows),
        "seeds": span(drawn.seeds),
        "facts": [cells.facts(row, table=table) for row in table.rows],
        "with_runs": any(row.run is not None and row.label != row.run for row in table.rows),
        "rule": None if rule is None else ruling(rule, table=table),
        "nfe": [_chart_picture(chart) for chart in nfe],
        "nfe_notes": " ".join(charts.nfe_notes(nfe)),
        "curves": [_chart_picture(chart) for chart in charts.metric_charts(shown)],
        "curve_seeds": shown.curve_seeds,
        "metrics": list(_metric_facts(table, experiment=experiment)),
        "networks": networks_of(table, experiment=experiment),
    }


def panels_of(shown: TableEvidence, *, datasets: Sequence[DatasetEvidence]) -> Panels:
    """Return the images of a table: of each of its datasets real ones, and of each row those of the same seeds."""
    table = shown.table
    resolution = max((image.shape[1] for each in shown.samples for image in each.values()), default=16)
    columns = min(_MOST_COLUMNS, max(3, _WIDTH // resolution))
    seeds = shared_seeds(shown.samples, count=columns**2)
    compared = {row.dataset for row in table.rows}
    found = [
        Panel(key=each.name, name=f"Real images: {each.name}", images=each.spread(columns**2))
        for each in datasets
        if each.name in compared and each.tiles
    ]
    for index, (row, samples) in enumerate(zip(table.rows, shown.samples, strict=True)):
        if samples and seeds:
            name = charts.row_name(row, table=table)
            found.append(Panel(key=index, name=name, images=[samples[seed] for seed in seeds]))
    return Panels(panels=tuple(found), columns=columns, seeds=tuple(seeds))


def _panel_picture(panel: Panel, *, columns: int) -> Picture:
    return contact_sheet(panel.images, columns=columns, width=_WIDTH, alt=f"Images: {panel.name}")


def span(seeds: Sequence[int]) -> str:
    """Return seeds as text: "0 to 15" for consecutive ones, else their number, first and last."""
    if not seeds:
        return "none"
    if seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]} to {seeds[-1]}"
    return f"{len(seeds)} seeds from {seeds[0]} to {seeds[-1]}"


def _metric_facts(table: Table, *, experiment: Experiment) -> Iterator[dict[str, str]]:
    columns: dict[str, list[str]] = {}
    for column, source in table.columns.items():
        columns.setdefault(source.partition(".")[0], []).append(column)
    for metric, shown in columns.items():
        block = experiment.metrics[metric]
        documented = components.describe("metrics", block.name).doc
        yield {
            "headings": ", ".join(cells.title_of(column, table=table) for column in shown),
            "sources": ", ".join(table.columns[column] for column in shown),
            "definition": " ".join(documented.split("\n\n")[0].split()),
            "options": ", ".join(f"{key} {value}" for key, value in block.options.items()),
            "features": ", ".join(block.extractors),
        }


def networks_of(table: Table, *, experiment: Experiment) -> dict[str, Any]:
    """Return the networks behind a table's numbers, each named by the run or input of its weights.

    Returns:
        `extractors` of the metrics, `backbones` of the losses that trained the rows, and `shared`, the
        networks that are both: their metrics are not independent of the training loss.
    """
    metrics = [experiment.metrics[source.partition(".")[0]] for source in table.columns.values()]
    used = [experiment.features[name] for metric in metrics for name in metric.extractors]
    extractors = dict.fromkeys(each.run or each.input or each.name for each in used)
    rows = {name for row in table.rows for name in (*row.runs, row.run)}
    trained = [run for name, run in experiment.runs.items() if name in rows]
    names = dict.fromkeys(name for run in trained for name in run_backbones(run))
    found = [experiment.backbones[name] for name in names]
    backbones = dict.fromkeys(each.run or each.input or each.timm for each in found)
    shared = [name for name in extractors if name in backbones]
    return {"extractors": list(extractors), "backbones": list(backbones), "shared": shared}


_PRECISION = "float32"  # of a training, unless its summary has another one


def _cost(runs: Sequence[RunEvidence]) -> dict[str, dict[str, str]]:
    """Return the facts of each run, without those that are 0, or the default precision, for all."""
    facts = {run.name: run_facts(run) for run in runs}
    names = next(iter(facts.values()), {})
    zero = [name for name in names if all(each[name] in ("0", _PRECISION) for each in facts.values())]
    return {run: {name: text for name, text in each.items() if name not in zero} for run, each in facts.items()}


def run_facts(run: RunEvidence) -> dict[str, str]:
    """Return the cost of a run by heading."""
    summary = run.summary
    rates = [rate for record in run.log if (rate := record.get("images_per_second")) is not None]
    memory = [record["memory_mib"] for record in run.log if record.get("memory_mib")]
    kind = "CPU" if str(summary.get("device", "")).startswith("CPU") else "GPU"
    return {
        "objective": run.objective.replace("_", " "),
        "precision": _precision(summary.get("arithmetic", {})),
        "images": f"{summary['images_seen']:,}",
        "parameters": f"{summary['parameters']:,}",
        "time": numbers.duration(summary["seconds"]),
        "images / s": f"{median_high(rates):.0f}" if rates else "not logged",
        "hours": f"{summary['seconds'] * summary['world_size'] / 3600:.2g} {kind} h",
        "peak memory": f"{max(memory):,} MiB" if memory else "not logged",
        "processes": str(summary["world_size"]),
        "restarts": str(summary["restarts"]),
        "non-finite": f"{sum(record.get('non_finite', 0) for record in run.log):,}",
    }


def _precision(arithmetic: Mapping[str, Any]) -> str:
    """Return the arithmetic that a run's summary records, such as `generator bfloat16`."""
    types = [f"{role} {kind}" for role, kind in arithmetic.items() if isinstance(kind, str) and kind != _PRECISION]
    options = [name for name, is_on in arithmetic.items() if is_on is True]
    return ", ".join([*types, *options]) or _PRECISION


def _study_view(study: StudyEvidence) -> dict[str, Any]:
    found = study.found
    title = found.get("question") or study.name.replace("_", " ")
    figure = _svg_picture(study.figure, alt=f"Figure: {title}") if study.figure else None
    facts = {key: {name: _text(value) for name, value in found[key].items()} for key in ("numbers", "control")}
    choices = map(_text, found["choices"])
    return {**found, **facts, "title": title, "figure": figure, "name": study.name, "choices": choices}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def _chart_picture(chart: Chart) -> Picture:
    figure = charts.draw([chart])
    width, height = (round(96 * side) for side in figure.get_size_inches())
    return _svg_picture(svg(figure), width=width, height=height, alt=chart.description)


def _svg_picture(text: str, *, width: int = 0, height: int = 0, alt: str) -> Picture:
    # A browser runs no script and loads no file of a picture.
    uri = f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
    return Picture(uri=uri, width=width, height=height, alt=alt)
