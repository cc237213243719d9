"""From config.yaml to checked values, and from these to the document of a run.

Every problem is one line that names the place in the file, what was found there, and what was expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onestep import components
from onestep.config.blocks import networks_of, resolve_components
from onestep.config.defaults import fill_in
from onestep.config.families import expand, merged
from onestep.config.fit import fit_problems
from onestep.config.generated_checks import generated_problems
from onestep.config.latent_checks import latent_problems
from onestep.config.messages import ConfigError, Problem, folded, got, in_order
from onestep.config.run import ResolvedRun, Run, document_of, to_document
from onestep.config.run_checks import backbones_of, run_problems
from onestep.config.schema import hidden_characters, plain, to_values
from onestep.config.sections import Experiment, Launch
from onestep.config.starts import started_from
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
    document, files = _layered(path)
    for file in files:
        components.search_in(file.parent)
    return parse_experiment(document, source=str(path))


def read_launch(path: Path | str) -> Launch:
    """Read and check the section `launch` of a config file, whether or not the rest is valid; ConfigError if wrong."""
    document = plain(_layered(Path(path))[0])
    given = document.get("launch") if isinstance(document, dict) else None
    section = {} if given is None else {"launch": given}
    experiment, problems = to_values(section)
    problems += hidden_characters(section)
    if experiment is None or problems:
        raise ConfigError(problem.line(str(path)) for problem in problems)
    return experiment.launch


def _layered(path: Path, above: tuple[Path, ...] = ()) -> tuple[Any, list[Path]]:
    """Return a config file as YAML reads it, merged over the one that it `extends`, and both files, itself first.

    Mappings merge deeply, other values replace, null removes a key, as with `base:` of a run. The path is relative to
    the file that names it.

    Raises:
        ConfigError: A file is not readable, is no mapping, or extends itself.
    """
    above = (*above, path)
    document = read_yaml(path)
    if not isinstance(document, dict) or "extends" not in document:
        return document, [path]
    named, wrong = document.pop("extends"), None
    if not isinstance(named, str) or not named.isprintable():
        wrong = f"{got(named)}, expected the path of a config"
    elif (below := path.parent / named).resolve() in {each.resolve() for each in above}:
        wrong = f"got {' -> '.join(map(str, (*above, below)))}, expected a config that does not extend itself"
    if wrong is not None:
        raise ConfigError([Problem(("extends",), wrong).line(str(path))])
    base, files = _layered(below, above)
    if not isinstance(base, dict):
        raise ConfigError([f"{below}: {got(base)}, expected a mapping, which {path} extends"])
    return merged(plain(base), plain(document)), [path, *files]


def config_files(path: Path | str) -> list[Path]:
    """Return a config file and those that it `extends`, itself first; ConfigError where one is not readable."""
    return _layered(Path(path))[1]


def parse_experiment(document: Any, *, source: str = "config") -> Experiment:
    """Check a config as YAML reads it; ConfigError where something is wrong, with `source` as its name."""
    document, problems = expand(plain(document))
    if hidden := hidden_characters(document):
        raise ConfigError(problem.line(source) for problem in in_order([*problems, *hidden], document))
    resolved = plain(document)
    fill_in(resolved)
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
            *latent_problems(experiment, declared={name: networks_of(objectives[name]) for name in experiment.runs}),
            *fit_problems(experiment, objectives=objectives),
            *table_problems(experiment, metrics=metrics),
            *study_problems(experiment, studies=studies),
            *generated_problems(experiment, objectives=objectives, metrics=metrics, studies=studies),
        ]
    if experiment is None or problems:
        raise ConfigError(problem.line(source) for problem in folded(in_order(problems, document)))
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
    extractors = {name: each for name in run_backbones(chosen) if (each := experiment.backbones[name].extractor)}
    classes = experiment.datasets[chosen.dataset].classes
    return ResolvedRun(
        name=run, run=chosen, timm=timm, extractors=extractors, classes=classes, snapshots=chosen.snapshots
    )


def run_backbones(run: Run) -> tuple[str, ...]:
    """Return the entries of `backbones` that a run loads: of its discriminators, and feature networks of its objective.

    Where torch is missing to build the objective, its feature networks are left out.
    """
    return backbones_of(run, networks_of(components.build_outline("objectives", run.objective)))


def networks_seen(experiment: Experiment, run: str) -> set[tuple[str | None, str | None]]:
    """Return the feature networks in the losses of a run and of the runs that it starts from: (run, input) of each."""
    chosen = experiment.runs[run]
    found = {(each.run, each.input) for each in map(experiment.backbones.__getitem__, run_backbones(chosen))}
    teacher = None if chosen.teacher is None else experiment.teachers[chosen.teacher].run
    sources = {name for _, name in started_from(chosen, experiment)} | ({teacher} - {None})
    return found.union(*(networks_seen(experiment, str(name)) for name in sources))


def run_document(experiment: Experiment, run: str) -> dict[str, Any]:
    """Return all that training one run reads of a config: the mapping that `onestep resolve` writes into run.yaml."""
    return document_of(resolved_run(experiment, run))
