"""Licences of weights, from those of the inputs that they come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from onestep.config.sections import Experiment
from onestep.inputs import read_registry

# Identifiers of model hubs by how their names are spelled in `inputs:` and in the registry.
_SPELLED = {
    "cc0-1.0": r"CC0(?: 1\.0)?",
    "mit": "MIT",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "apache-2.0": r"Apache-2\.0",
    "cc-by-4.0": r"CC BY 4\.0",
    "cc-by-sa-4.0": r"CC BY-SA 4\.0",
    "cc-by-nc-4.0": r"CC BY-NC 4\.0",
    "cc-by-nc-sa-4.0": r"CC BY-NC-SA 4\.0",
}
_PERMISSIVE = (
    "cc0-1.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "apache-2.0",
    "cc-by-4.0",
)  # each allows the later ones


def licences_of(experiment: Experiment, *, run: str) -> dict[str, str | None]:
    """Return the licence texts of what a run's weights come from: its dataset, its teacher, and those of its teacher.

    By input; None if neither the config nor the registry states one. Backbones leave nothing in the weights.

    ValueError: The config has no such run.
    """
    if run not in experiment.runs:
        raise ValueError(f"run: got {run!r}, expected one of {', '.join(experiment.runs)}")
    block, found = experiment.runs[run], dict[str, str | None]()
    dataset = experiment.datasets.get(block.dataset)
    if dataset is not None and dataset.dataset is not None:
        dataset = experiment.datasets[dataset.dataset]
    found[f"dataset {block.dataset}"] = None if dataset is None else _stated(experiment, dataset.input)
    if block.teacher is not None:
        teacher = experiment.teachers[block.teacher]
        if teacher.run is not None:
            return found | licences_of(experiment, run=teacher.run)
        found[f"teacher {block.teacher}"] = _stated(experiment, teacher.input)
    return found


def _stated(experiment: Experiment, name: str | None) -> str | None:
    source = experiment.inputs.get(name) if name is not None else None
    if source is None:
        return None
    if source.licence is not None or source.published is None:
        return source.licence
    return read_registry()[source.published].licence


def derived_licence(stated: Mapping[str, str | None]) -> str:
    """Return the identifier of a licence that all stated ones allow for weights made from their inputs.

    ValueError: One is not stated, is not known, or does not allow the others.
    """
    unknown = [f"{place} ({text or 'none stated'})" for place, text in stated.items() if _identifiers(text) is None]
    if unknown or not stated:
        raise ValueError(f"of {' and '.join(unknown) or 'no input'}")
    found = {each for text in stated.values() for each in _identifiers(text) or ()}
    if (one := _combined(found)) is None:
        raise ValueError(f"of {', '.join(sorted(found))}, which do not allow each other")
    return one


def _identifiers(text: str | None) -> set[str] | None:
    """Return the licences in a text such as "MIT (ours); from EDM, CC BY-NC-SA 4.0"; None if a part names none."""
    found = set()
    for part in re.sub(r"\([^)]*\)", "", text or "").split(";"):
        names = [name for name, spelled in _SPELLED.items() if re.search(rf"(?:^|, ){spelled}$", part.strip())]
        if not names:
            return None
        found |= set(names)
    return found


def _combined(found: Iterable[str]) -> str | None:
    others = sorted(set(found) - set(_PERMISSIVE))
    if not others:
        return max(found, key=_PERMISSIVE.index)
    if len(others) == 1:
        return others[0]
    # What is CC BY-NC may become part of a CC BY-NC-SA work; what is CC BY-SA may not.
    return "cc-by-nc-sa-4.0" if "cc-by-sa-4.0" not in others else None
