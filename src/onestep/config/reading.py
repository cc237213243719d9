"""From config.yaml to checked values, and from these to the document of a run.

Every problem is one line that names the place in the file, what was found there, and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from onestep import components
from onestep.config.blocks import networks_of, resolve_components
from onestep.config.families import expand
from onestep.config.messages import ConfigError, Place, Problem, in_order, one_line
from onestep.config.run import ResolvedRun, Run, document_of, to_document
from onestep.config.run_checks import backbones_of, run_problems
from onestep.config.schema import plain, to_values
from onestep.config.sections import Experiment, Launch
from onestep.config.table_checks import study_problems, table_problems

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


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
    """Read and check the section `launch` of a config file, whether or not the rest is valid; ConfigError if wrong."""
    document = plain(read_yaml(Path(path)))
    given = document.get("launch") if isinstance(document, dict) else None
    experiment, problems = to_values({} if given is None else {"launch": given})
    if experiment is None:
        raise ConfigError(problem.line(str(path)) for problem in problems)
    return experiment.launch


def parse_experiment(document: Any, *, source: str = "config") -> Experiment:
    """Check a config as YAML reads it; ConfigError where something is wrong, with `source` as its name."""
    document, problems = expand(plain(document))
    resolved = plain(document)
    wrong_blocks, broken, built = resolve_components(resolved)
    experiment, misshapen = to_values(resolved)
    problems += wrong_blocks
    problems += [each for each in misshapen if not any(each.place[: len(block)] == block for block in broken)]
    if experiment is not None and not problems:  # references between sections last, when everything else is right
        objectives = {name: built.get(("runs", name, "objective")) for name in experiment.runs}
        studies = {name: built.get(("studies", name)) for name in experiment.studies}
        metrics = {name: built.get(("metrics", name)) for name in experiment.metrics}
        problems = [
            *run_problems(experiment, objectives=objectives),
            *table_problems(experiment, metrics=metrics),
            *study_problems(experiment, studies=studies),
        ]
    if experiment is None or problems:
        raise ConfigError(problem.line(source) for problem in in_order(problems, document))
    return experiment


def experiment_document(experiment: Experiment) -> dict[str, Any]:
    """Return a config as mappings, lists and scalars, with every default filled in."""
    return dict(to_document(experiment))


def resolved_run(experiment: Experiment, run: str) -> ResolvedRun:
    """Return a run as run.yaml holds it; ValueError where there is none of this name."""
    if run not in experiment.runs:
        raise ValueError(f"run: got {run!r}, expected one of: {', '.join(experiment.runs)}")
    chosen = experiment.runs[run]
    timm = {name: each for name in run_backbones(chosen) if (each := experiment.backbones[name].timm) is not None}
    return ResolvedRun(name=run, run=chosen, timm=timm, snapshots=chosen.snapshots)


def run_backbones(run: Run) -> tuple[str, ...]:
    """Return the entries of `backbones` that a run loads: of its discriminators, and feature networks of its objective.

    Where torch is missing to build the objective, its feature networks are left out.
    """
    return backbones_of(run, networks_of(components.build_outline("objectives", run.objective)))


def run_document(experiment: Experiment, run: str) -> dict[str, Any]:
    """Return all that training one run reads of a config: the mapping that `onestep resolve` writes into run.yaml."""
    return document_of(resolved_run(experiment, run))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file as plain values.

    ConfigError if it cannot be read, is no YAML, or has a key twice or one that is no text, which PyYAML accepts.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}, expected a YAML file, such as config.yaml"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text (byte {error.start}). Fix: save it as UTF-8"]) from error
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        problems = [] if root is None else list(_odd_keys(root, place=(), above=(), seen=set()))
        if problems:
            raise ConfigError(problem.line(str(path)) for problem in problems)
        return None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: {_syntax(error)}"]) from error


def _syntax(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {one_line(error)}"
    return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {getattr(error, 'problem', None)}"


def _odd_keys(
    node: yaml.Node, *, place: Place, above: tuple[yaml.Node, ...], seen: set[yaml.Node]
) -> Iterator[Problem]:
    """Yield the problems of the keys of a node and of all below it; each alias once."""
    if node in above:
        yield Problem(place, f"line {node.start_mark.line + 1}: an alias to the mapping or list that contains it")
    if node in seen:
        return
    seen.add(node)
    first: dict[str, int] = {}
    children: list[tuple[str | int, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        children = list(enumerate(node.value))
    for key, child in node.value if isinstance(node, yaml.MappingNode) else ():
        name = key.value if isinstance(key, yaml.ScalarNode) else "[...]"
        line = key.start_mark.line + 1
        children.append((name, child))
        if key.tag not in (_TEXT, _MERGE):
            yield Problem(place, f"line {line}: the key {name!r} is no text to YAML. Fix: put it in quotes")
        elif name in first:
            yield Problem((*place, name), f"given twice, in lines {first[name]} and {line}")
        else:
            first[name] = line
    for step, child in children:
        yield from _odd_keys(child, place=(*place, step), above=(*above, node), seen=seen)
