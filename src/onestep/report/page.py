"""The results page: one HTML file that opens from disk, makes no request and needs no script."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import onestep
from onestep import files
from onestep.report import curves, numbers
from onestep.report.evidence import Evidence
from onestep.report.figures import draw
from onestep.report.views import run_view, stage_views, table_view
from onestep.report.yaml_markup import highlight_yaml


def write_page(path: Path | str, *, evidence: Evidence) -> None:
    """Write the results page to `path`, whole or not at all."""
    files.write_text(path, render(evidence))


def render(evidence: Evidence) -> str:
    """Return the results page. The same evidence gives the same text."""
    environment = Environment(
        loader=PackageLoader("onestep", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = curves.run_colours(evidence)
    return environment.get_template("page.html.jinja").render(
        css=Markup("".join(_style(name) for name in ("colours.css", "page.css", "chart.css"))),
        tables=[table_view(shown, config=evidence.config) for shown in evidence.tables],
        runs=[run_view(run, colour=colours[run.name], config=evidence.config) for run in evidence.runs],
        charts=[Markup(draw(chart)) for chart in curves.log_charts(evidence, colours=colours)],
        stages=stage_views(evidence.stages),
        total_time=numbers.duration(sum(stage.total for stage in evidence.stages)),
        environment=evidence.environment,
        inputs=evidence.config.get("inputs") or {},
        config=highlight_yaml(evidence.config_text),
        reproduce=evidence.reproduce,
        version=onestep.__version__,
    )


def _style(name: str) -> str:
    return resources.files("onestep.report").joinpath(name).read_text(encoding="utf-8")
