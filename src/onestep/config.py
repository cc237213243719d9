"""From config.yaml to frozen values, everything in it checked before any job starts.

Each component's block is checked against the keyword-only signature of the class that it names, so a file in a family
folder needs no second description here. Every problem is one line that names the place in the file, what was found
there, and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestep._config.components import resolve_components
from onestep._config.problems import ConfigError, Place, in_order
from onestep._config.run_checks import run_problems
from onestep._config.shape import to_document, to_values
from onestep._config.table_checks import table_problems
from onestep._config.values import Experiment, Launch
from onestep._config.yaml_document import read_yaml

__all__ = [
    "ConfigError",
    "Experiment",
    "Launch",
    "experiment_document",
    "parse_experiment",
    "read_experiment",
    "read_launch",
    "run_document",
]


def read_experiment(path: Path | str) -> Experiment:
    """Read and check a config file.

    Raises:
        ConfigError: The file is not readable, or something in it is wrong.
    """
    return parse_experiment(read_yaml(Path(path)), source=str(path))


def read_launch(path: Path | str) -> Launch:
    """Read and check the section `launch` of a config file alone, whatever is wrong with the rest of it.

    Raises:
        ConfigError: The file is not readable, or something in that section is wrong.
    """
    document = _plain(read_yaml(Path(path)))
    given = document.get("launch") if isinstance(document, dict) else None
    experiment, problems = to_values({} if given is None else {"launch": given})
    if experiment is None:
        raise ConfigError(problem.line(str(path)) for problem in problems)
    return experiment.launch


def parse_experiment(document: Any, *, source: str = "config") -> Experiment:
    """Check a config that has been read already.

    References between sections are checked once everything else is right.

    Args:
        document: What YAML makes of a config: mappings, lists, texts, numbers, booleans and None.
        source: What messages call it.

    Raises:
        ConfigError: Something in it is wrong.
    """
    document = _plain(document)
    resolved = resolve_components(document)
    experiment, misshapen = to_values(resolved.document)
    problems = resolved.problems + [each for each in misshapen if not _within(each.place, resolved.broken)]
    if experiment is not None and not problems:
        problems = [*run_problems(experiment), *table_problems(experiment)]
    if experiment is None or problems:
        raise ConfigError(problem.line(source) for problem in in_order(problems, document))
    return experiment


def _plain(document: Any) -> Any:
    """Return a document in which aliases are copies, and dates, for which a config has no use, text again."""
    return json.loads(json.dumps(document, default=str))


def _within(place: Place, broken: tuple[Place, ...]) -> bool:
    """Whether a place lies in a block whose problems are known already."""
    return any(place[: len(each)] == each for each in broken)


def experiment_document(experiment: Experiment) -> dict[str, Any]:
    """Return a config as mappings, lists, texts, numbers and booleans, with every default filled in."""
    return to_document(experiment)


def run_document(experiment: Experiment, run: str) -> dict[str, Any]:
    """Return all that training one run reads of a config: what `onestep resolve` writes into run.yaml.

    It has the keys of the run's block, every default filled in, and `run`, its name, and `snapshots`, the counts of
    images that name them. Dataset, teacher and backbones stand in it by name; where backbones are networks of timm,
    `timm` says which, by name.

    Raises:
        ValueError: There is no such run.
    """
    if run not in experiment.runs:
        raise ValueError(f"no run called {run!r}; choices: {', '.join(experiment.runs)}")
    values: Mapping[str, Any] = to_document(experiment.runs[run])
    timm = _timm_names(experiment, run)
    return {
        "run": run,
        **values,
        **({"timm": timm} if timm else {}),
        "snapshots": list(experiment.runs[run].snapshots),
    }


def _timm_names(experiment: Experiment, run: str) -> dict[str, str]:
    """Return what timm calls those of a run's backbones that are its networks."""
    discriminator = experiment.runs[run].discriminator
    names = {name: experiment.backbones[name].timm for name in (discriminator.backbones if discriminator else ())}
    return {name: timm for name, timm in names.items() if timm is not None}
