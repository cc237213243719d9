"""From config.yaml to checked values, and from these to the document of a run.

Every problem is one line that names the place in the file, what was found there, and what was expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onestep import components
from onestep.config.blocks import networks_of, resolve_components
from onestep.config.families import expand
from onestep.config.launch import Launch
from onestep.config.messages import ConfigError, Place, in_order
from onestep.config.run import ResolvedRun, Run, document_of, to_document
from onestep.config.run_checks import backbones_of, run_problems
from onestep.config.schema import plain, to_values
from onestep.config.sections import Experiment
from onestep.config.table_checks import study_problems, table_problems
from onestep.config.yaml_file import read_yaml


def read_experiment(path: Path | str) -> Experiment:
    """Read and check a config file.

    Components from outside (`name: my_module:MyClass`) are imported from the working directory, from the file's folder,
    or from installed packages.

    Raises:
        ConfigError: The file is not readable, or something in it is wrong.
    """
    path = Path(path)
    components.search_in(path.parent)
    return parse_experiment(read_yaml(path), source=str(path))


def read_launch(path: Path | str) -> Launch:
    """Read and check the section `launch` of a config file, whether or not the rest is valid.

    Raises:
        ConfigError: The file is not readable, or something in that section is wrong.
    """
    document = plain(read_yaml(Path(path)))
    given = document.get("launch") if isinstance(document, dict) else None
    experiment, problems = to_values({} if given is None else {"launch": given})
    if experiment is None:
        raise ConfigError(problem.line(str(path)) for problem in problems)
    return experiment.launch


def parse_experiment(document: Any, *, source: str = "config") -> Experiment:
    """Check a config that has been read already.

    References between sections are checked when everything else is right.

    Args:
        document: The config as YAML reads it: mappings, lists, texts, numbers, booleans and None.
        source: The config's name in messages.

    Raises:
        ConfigError: Something in it is wrong.
    """
    document, wrong_families = expand(plain(document))
    resolved = resolve_components(plain(document))
    experiment, misshapen = to_values(resolved.document)
    problems = (
        wrong_families + resolved.problems + [each for each in misshapen if not _within(each.place, resolved.broken)]
    )
    if experiment is not None and not problems:
        objectives = {name: resolved.built.get(("runs", name, "objective")) for name in experiment.runs}
        studies = {name: resolved.built.get(("studies", name)) for name in experiment.studies}
        metrics = {name: resolved.built.get(("metrics", name)) for name in experiment.metrics}
        problems = [
            *run_problems(experiment, objectives=objectives),
            *table_problems(experiment, metrics=metrics),
            *study_problems(experiment, studies=studies),
        ]
    if experiment is None or problems:
        raise ConfigError(problem.line(source) for problem in in_order(problems, document))
    return experiment


def _within(place: Place, broken: tuple[Place, ...]) -> bool:
    """Return whether a place is inside a block that has problems of its own."""
    return any(place[: len(each)] == each for each in broken)


def experiment_document(experiment: Experiment) -> dict[str, Any]:
    """Return a config as mappings, lists and scalars, with every default filled in."""
    document: dict[str, Any] = to_document(experiment)
    return document


def resolved_run(experiment: Experiment, run: str) -> ResolvedRun:
    """Return a run as run.yaml holds it.

    Raises:
        ValueError: There is no such run.
    """
    if run not in experiment.runs:
        raise ValueError(f"run: got {run!r}, expected one of: {', '.join(experiment.runs)}")
    chosen = experiment.runs[run]
    timm = {name: experiment.backbones[name].timm for name in run_backbones(chosen)}
    return ResolvedRun(
        name=run,
        run=chosen,
        timm={name: each for name, each in timm.items() if each is not None},
        snapshots=chosen.snapshots,
    )


def run_backbones(run: Run) -> tuple[str, ...]:
    """Return the entries of `backbones` that a run loads: of its discriminators, and feature networks of its objective.

    Where torch is missing to build the objective, its feature networks are left out.
    """
    return backbones_of(run, networks_of(components.build_outline("objectives", run.objective)))


def run_document(experiment: Experiment, run: str) -> dict[str, Any]:
    """Return all that training one run reads of a config: the mapping that `onestep resolve` writes into run.yaml.

    It has the keys of the run's block with every default filled in, its name `run`, and the counts of images
    `snapshots`. Dataset, teacher and backbones are names of their sections; for backbones of timm, `timm` has their
    names there.

    Raises:
        ValueError: There is no such run.
    """
    return document_of(resolved_run(experiment, run))
