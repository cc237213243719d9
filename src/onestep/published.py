"""What a user names on the command line: a file of weights, a run, a model of `results/`, or one of their folders."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from onestep.chain import sampler_for, sampler_in
from onestep.files import read_json, read_text
from onestep.models import Model, Teacher, parse_model
from onestep.records import read_run_config
from onestep.results import Results
from onestep.shapes import misfit

if TYPE_CHECKING:
    from onestep.checkpoints.snapshot import Snapshot

EXPORTED = "generator.safetensors"
"""Name of the weights in a folder of `onestep export`."""
CARD = "README.md"
"""The model card beside them; its front matter has what `origin_of` needs, under the key `onestep`."""
_MOST_CARD = 2**22  # bytes
_WEIGHTS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How weights are used, as far as it is recorded with them."""

    sampler: Mapping[str, Any] | None = None  # of a generator of one or few steps, as in config.yaml
    class_names: tuple[str, ...] = ()  # in the order of the classes


def weights_file(name: Path | str) -> Path:
    """Return the file of weights that a user names.

    That is a file, a run's folder or the name of a run (its newest snapshot), a model such as `RUN@40000`, a teacher,
    or a folder of `onestep export`. Names are those in `results/` of the working directory.

    ValueError: There is none.
    """
    path, results = Path(name), Results()
    if path.is_dir() and (path / "config.json").exists() and not (path / EXPORTED).exists():
        fix = "Fix: convert it first, `onestep convert --source FOLDER --output FILE.safetensors`"
        raise ValueError(f"{path}: got a folder of diffusers, expected {_WEIGHTS}. {fix}")
    if path.is_dir():
        return path / EXPORTED if (path / EXPORTED).exists() else newest_snapshot(path)
    if not path.exists() and path.name == str(path):
        model = _model(path.name)
        if isinstance(model, Teacher) and results.run(model.name).is_dir():
            return newest_snapshot(results.run(model.name))
        if model is not None and results.weights(model).exists():
            return results.weights(model)
    if path.exists() and path.suffix == _WEIGHTS:
        return path
    if path.exists():
        fix = "Fix: convert it first, `onestep convert --source FILE --output FILE.safetensors`"
        raise ValueError(f"{path}: got a file of another kind, expected {_WEIGHTS}. {fix}")
    raise ValueError(f"{name}: got no weights, expected a {_WEIGHTS} file, a run or its folder{_known(path.name)}")


def _model(name: str) -> Model | None:
    try:
        return parse_model(name)
    except ValueError:
        return None


def run_folder(name: Path | str) -> Path:
    """Return the folder of a run by its path or by the name of the run in `results/`. ValueError: There is none."""
    for folder in (Path(name), Results().run(str(name))):
        if (folder / "run.yaml").exists():
            return folder
    raise ValueError(f"{name}: got no run, expected a run or its folder{_known(Path(name).name)}")


def newest_snapshot(folder: Path) -> Path:
    """Return the snapshot of a run's main EMA with the most images. ValueError: There is none."""
    found = {int(path.stem): path for path in folder.glob(f"snapshots/*{_WEIGHTS}") if path.stem.isdecimal()}
    if not found:
        what = "a run without a published snapshot" if (folder / "run.yaml").exists() else "a folder of no run"
        fix = f"a run's folder with snapshots, or one with {EXPORTED}. Fix: train the run, or choose another one"
        raise ValueError(f"{folder}: got {what}, expected {fix}")
    return found[max(found)]


def run_of(weights: Path) -> Path | None:
    """Return the folder of the run that a snapshot, or a selected one, is of; None for other files."""
    place = weights.parent if weights.parent.name in ("snapshots", "selections") else weights.absolute().parent
    folder = place.parent
    if place.name == "selections":
        if (model := _model(weights.stem)) is None:
            return None
        folder = Results(folder).run(model.name)
    elif place.name != "snapshots":
        return None
    return folder if (folder / "run.yaml").exists() else None


def snapshot_of(weights: Path, *, run: str) -> str:
    """Return the name of a snapshot of a run by its file, such as `RUN@40000`; of a selected one, by its record."""
    record = weights.with_suffix(".json")
    if _model(weights.stem) is not None and record.exists():
        return str(read_json(record, {"snapshot": str})["snapshot"])
    return f"{run}@{weights.stem}"


def origin_of(weights: Path, network: Snapshot) -> Origin:
    """Return what the run of the weights or the card of an exported generator records, else what their file implies.

    ValueError: The record is damaged.
    """
    run = run_of(weights)
    if run is not None:
        return _origin_of_run(run)
    card = weights.parent / CARD
    if weights.name == EXPORTED and card.exists() and (found := _front_matter(card)) is not None:
        return Origin(sampler=found.get("sampler"), class_names=tuple(found.get("classes") or ()))
    # The law of D2O makes the network the identity without noise, as that of a generator of one step.
    one_step = {"name": "one_step"} if network.config.get("preconditioning") == "d2o" else None
    return Origin(sampler=sampler_in(network.note) or one_step)


def _origin_of_run(run: Path) -> Origin:
    _, document = read_run_config(run / "run.yaml")
    objective = document.get("objective")
    sampler = sampler_for(objective) if objective else None
    return Origin(sampler=sampler, class_names=class_names_of(run, document) if document.get("conditional") else ())


def class_names_of(run: Path, document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in the card of a run's dataset; empty where it has none."""
    card = Results(run.absolute().parents[1]).data(str(document.get("dataset")), ".json")
    return tuple(read_json(card, {"class_names?": ([str], None)}).get("class_names") or ()) if card.exists() else ()


def _front_matter(card: Path) -> Mapping[str, Any] | None:
    """Return the entry `onestep` of a card's front matter; None if there is none."""
    parts = read_text(card, most=_MOST_CARD).split("---\n", 2)
    try:
        found = (yaml.safe_load(parts[1]) or {}).get("onestep") if len(parts) == 3 and not parts[0] else None
    except Exception as error:  # constructors of YAML raise anything
        raise ValueError(f"{card}: got no YAML in its front matter. Fix: export again") from error
    if found is not None and (wrong := misfit(found, {"sampler?": ({"name": str}, None), "classes?": ([str], None)})):
        raise ValueError(f"{card}: onestep: {wrong}. Fix: export again")
    return found


def _known(name: str) -> str:
    """Return the runs in `results/`, or the one that is meant, as the end of an error."""
    runs = sorted(path.parent.name for path in Results().root.glob("runs/*/run.yaml"))
    if close := difflib.get_close_matches(name, runs, n=1):
        return f". Did you mean {close[0]}?"
    if not runs:
        return f". Fix: correct the path; there are no runs in {Results().root.absolute()}"
    return f". Fix: choose one of {', '.join(runs[:12])}{', ...' if len(runs) > 12 else ''}"
