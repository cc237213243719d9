"""The verb `report`: the results page, one HTML file without scripts and requests; its pictures are data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median_high
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import onestep
from onestep import components, files
from onestep.config.reading import experiment_document
from onestep.config.sections import Experiment
from onestep.escapes import markup
from onestep.figures import COLOURS, svg
from onestep.report import cells, charts, numbers
from onestep.report.charts import Chart
from onestep.report.evidence import Evidence, RunEvidence, StudyEvidence, TableEvidence, read_evidence
from onestep.report.table import Table

_MOST_COLUMNS, _WIDTH = 8, 560


def report(*, config: Path, results: Path, benchmarks: Path, output: Path) -> int:
    """Write the results page.

    Args:
        config: The config.
        results: The results folder.
        benchmarks: Folder of Snakemake's benchmark files; may be absent.
        output: The page (.html).
    """
    reproduce = (f"snakemake --directory {Path.cwd().name} --profile profiles/local",)
    evidence = read_evidence(results, config=config, benchmarks=benchmarks, reproduce=reproduce)
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
        tables=[_table_view(shown, experiment=evidence.experiment) for shown in evidence.tables],
        studies=[_study_view(study) for study in evidence.studies],
        runs=evidence.runs,
        run_facts={run.name: run_facts(run) for run in evidence.runs},
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


def _table_view(shown: TableEvidence, *, experiment: Experiment) -> dict[str, Any]:
    table, nfe, curve = shown.table, charts.nfe_charts(shown.table), charts.metric_chart(shown)
    resolution = max((image.shape[1] for each in shown.samples for image in each.values()), default=16)
    columns = min(_MOST_COLUMNS, max(3, _WIDTH // resolution))
    seeds = shared_seeds(shown.samples, count=columns**2)
    return {
        "table": table,
        "images": [
            _images(samples, seeds=seeds, columns=columns, alt=f"Images by {row.label} with NFE {row.nfe}")
            for row, samples in zip(table.rows, shown.samples, strict=True)
        ],
        "lost": shown.lost or ("",) * len(table.rows),
        "seeds": span(seeds),
        "nfe": [_chart_picture(chart) for chart in nfe],
        "nfe_notes": " ".join(charts.nfe_notes(nfe)),
        "curve": None if curve is None else _chart_picture(curve),
        "curve_seeds": shown.curve_seeds,
        "metrics": list(_metric_facts(table, experiment=experiment)),
        "networks": networks_of(table, experiment=experiment),
    }


def _images(samples: Mapping[int, np.ndarray], *, seeds: Sequence[int], columns: int, alt: str) -> Picture | None:
    if not samples or not seeds:
        return None
    return contact_sheet([samples[seed] for seed in seeds], columns=columns, width=_WIDTH, alt=alt)


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
            "features": block.features or "",
        }


def networks_of(table: Table, *, experiment: Experiment) -> dict[str, Any]:
    """Return the networks behind a table's numbers, each named by the run or input of its weights.

    Returns:
        `extractors` of the metrics, `backbones` of the discriminators that trained the rows, and `shared`, the
        networks that are both: their metrics are not independent of the training loss.
    """
    metrics = [experiment.metrics[source.partition(".")[0]] for source in table.columns.values()]
    used = [experiment.features[metric.features] for metric in metrics if metric.features]
    extractors = dict.fromkeys(each.run or each.input or each.name for each in used)
    rows = {name for row in table.rows for name in (*row.runs, row.run)}
    discriminators = [run.discriminator for name, run in experiment.runs.items() if name in rows]
    names = dict.fromkeys(name for each in discriminators if each is not None for name in each.backbones)
    found = [experiment.backbones[name] for name in names]
    backbones = dict.fromkeys(each.run or each.input or each.timm for each in found)
    shared = [name for name in extractors if name in backbones]
    return {"extractors": list(extractors), "backbones": list(backbones), "shared": shared}


def run_facts(run: RunEvidence) -> dict[str, str]:
    """Return the cost of a run by heading."""
    summary = run.summary
    rates = [rate for record in run.log if (rate := record.get("images_per_second")) is not None]
    memory = [record["memory_mib"] for record in run.log if record.get("memory_mib")]
    return {
        "objective": run.objective,
        "images": f"{summary['images_seen']:,}",
        "parameters": f"{summary['parameters']:,}",
        "time": numbers.duration(summary["seconds"]),
        "images / s": f"{median_high(rates):.0f}" if rates else "not logged",
        "memory": f"{max(memory):,} MiB" if memory else "not logged",
        "processes": str(summary["world_size"]),
        "restarts": str(summary["restarts"]),
        "non-finite": f"{sum(record.get('non_finite', 0) for record in run.log):,}",
    }


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


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a data URI, with its size in px, 0 for its own, and its description."""

    uri: str
    width: int
    height: int
    alt: str


def shared_seeds(samples: Iterable[Mapping[int, np.ndarray]], *, count: int) -> list[int]:
    """Return the first `count` seeds that every row with images has, ascending."""
    drawn = [set(each) for each in samples if each]
    return sorted(set.intersection(*drawn))[:count] if drawn else []


def contact_sheet(images: Sequence[np.ndarray], *, columns: int, width: int, alt: str) -> Picture:
    """Return images, uint8 [H, W, C], with transparent gaps, enlarged by a whole factor to at least `width` px."""
    height, image_width, channels = images[0].shape
    gap = max(1, image_width // 16)
    rows = -(-len(images) // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (image_width + gap) - gap, channels + 1), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (image_width + gap)
        sheet[top : top + height, left : left + image_width, :channels] = image
        sheet[top : top + height, left : left + image_width, channels] = 255
    factor = max(1, -(-width // sheet.shape[1]))
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(uri=uri, width=sheet.shape[1], height=sheet.shape[0], alt=alt)


def _chart_picture(chart: Chart) -> Picture:
    figure = charts.draw([chart])
    width, height = (round(96 * side) for side in figure.get_size_inches())
    return _svg_picture(svg(figure), width=width, height=height, alt=chart.description)


def _svg_picture(text: str, *, width: int = 0, height: int = 0, alt: str) -> Picture:
    # A browser runs no script and loads no file of a picture.
    uri = f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
    return Picture(uri=uri, width=width, height=height, alt=alt)
