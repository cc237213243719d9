"""What the metrics are and what they look through, as config.yaml and the metrics' own docstrings state it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onestep import components
from onestep.report import cells
from onestep.report.table import Table


@dataclass(frozen=True, kw_only=True)
class MetricFact:
    """A metric explained.

    Attributes:
        headings: Its columns, as the table heads them.
        sources: `metric.value` in config.yaml, one a column.
        explanation: First paragraph of the metric's docstring.
        options: Its settings in config.yaml, as text: "neighbours 3".
        features: The network it looks through.
    """

    headings: str
    sources: str
    explanation: str
    options: str
    features: str


def metric_facts(table: Table, *, config: Mapping[str, Any]) -> list[MetricFact]:
    """Explain each metric that a table shows, in the order of the columns."""
    columns: dict[str, list[str]] = {}
    for column, source in table.columns.items():
        columns.setdefault(source.partition(".")[0], []).append(column)
    return [_metric_fact(table, shown, options=config["metrics"][metric]) for metric, shown in columns.items()]


def _metric_fact(table: Table, columns: list[str], *, options: Mapping[str, Any]) -> MetricFact:
    options = dict(options)
    name, features = options.pop("name"), options.pop("features", "")
    explanation = first_paragraph(components.outline("metrics", name))
    return MetricFact(
        headings=", ".join(cells.title_of(column, table=table) for column in columns),
        sources=", ".join(table.columns[column] for column in columns),
        explanation=explanation[:1].upper() + explanation[1:],
        options=", ".join(f"{key} {value}" for key, value in options.items()),
        features=features,
    )


def first_paragraph(documented: object) -> str:
    """Return the first paragraph of an object's docstring on one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def independence(table: Table, *, config: Mapping[str, Any]) -> list[str]:
    """Say, network by network, whether what the metrics look through is apart from what the training looked through."""
    features = {config["metrics"][source.partition(".")[0]].get("features") for source in table.columns.values()}
    backbones = _backbones([row.run for row in table.rows], config=config)
    return [_apart(name, backbones=backbones, config=config) for name in sorted(features - {None})]


def _backbones(runs: Iterable[str], *, config: Mapping[str, Any]) -> list[str]:
    """Return the backbones that the discriminators of `runs` look through, each once."""
    found: dict[str, None] = {}
    for run in runs:
        discriminator = config["runs"].get(run, {}).get("discriminator") or {}
        found.update(dict.fromkeys(discriminator.get("backbones", ())))
    return list(found)


def _apart(features: str, *, backbones: list[str], config: Mapping[str, Any]) -> str:
    metric_run = config["features"][features].get("run")
    eyes = {name: (config.get("backbones", {}).get(name) or {}).get("run") for name in backbones}
    start = f"The metrics look through {metric_run or features}"
    if not backbones:
        return f"{start}; no row was trained through a discriminator's backbone."
    if metric_run in eyes.values() if metric_run else features in backbones:
        return f"Caution: {start}, and so did a discriminator. The metric is then the training loss in disguise."
    names = " and ".join(run or name for name, run in eyes.items())
    differences = [_difference(metric_run, run, config=config) for run in eyes.values() if metric_run and run]
    told = "; ".join(each for each in differences if each)
    apart = f"a network trained apart from it ({told})" if told else "another network"
    return f"{start}; the discriminators looked through {names}, {apart}. So the metric is not the loss in disguise."


def _difference(metric_run: str, backbone_run: str, *, config: Mapping[str, Any]) -> str:
    """Return the settings in which two runs differ: 'classifier.width 24 against 16, seed 2 against 1'."""
    ours, theirs = flatten(config["runs"][metric_run]), flatten(config["runs"][backbone_run])
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key} {ours.get(key, 'unset')} against {theirs.get(key, 'unset')}" for key in keys)


def flatten(options: Mapping[str, Any], *, path: str = "") -> dict[str, Any]:
    """Return nested options by dotted path."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        here = f"{path}{key}"
        found.update(flatten(value, path=f"{here}.") if isinstance(value, Mapping) else {here: value})
    return found
