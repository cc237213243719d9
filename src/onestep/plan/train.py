"""Functions of train.smk."""

from __future__ import annotations

import functools
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep import components
from onestep.config.reading import run_backbones, run_document
from onestep.config.run import Run
from onestep.config.starts import pairs_teacher, started_from
from onestep.files import canonical_json
from onestep.models import Snapshot, parse_model
from onestep.plan import Plan, inputs
from onestep.plan import progress as progress_of_runs


@dataclass(frozen=True, kw_only=True)
class TrainRule:
    """What differs between the train rules of two runs."""

    name: str
    data: Path
    weights: list[Path]  # the teacher, the backbones, the class embeddings, what `init` names, and the pairs
    options: str  # the same as options of `onestep launch`, quoted for a shell
    # Of a run that continues, those that it will make: what it has published is no output, which could be removed.
    snapshots: list[Path]
    is_same: bool  # the published run is of this science: nothing of it is removed
    settled: Mapping[str, Any] | None  # its configuration if it has all snapshots: a newer run.yaml trains nothing
    code: str  # code fingerprint if config.yaml lets training follow its code, else empty
    priority: int  # the images of the run and of the longest chain of runs after it: to wait for it costs the most


def run_config(plan: Plan, run: str, *, settled: Mapping[str, Any] | None = None) -> str:
    """Return the resolved configuration of a run; of a settled one that which it was published with."""
    return canonical_json(run_document(plan.written, run) if settled is None else settled)


def training_code(plan: Plan, run: str) -> str:
    """Return the fingerprint of today's training code of a run."""
    return plan.fingerprints.of_training(run_document(plan.written, run))


def intention(plan: Plan, run: str) -> str | None:
    """Return what training a run would do, such as "continues digits_d2o from 40,000 to 80,000 images"; None: nothing.

    Quick, without torch: it compares the config with the records of the run's folders.
    """
    return progress_of_runs.intention(plan.written, run, results=plan.results, state=plan.state)


def weight_files(plan: Plan, name: str) -> dict[str, Any]:
    """Return the files that a run starts from beside its dataset, by the fields of `training.assignment.Inputs`."""
    run = plan.experiment.runs[name]
    table = None if run.discriminator is None else run.discriminator.class_embeddings
    return {
        "teacher": None if run.teacher is None else plan.results.teacher(run.teacher),
        "backbones": {each: inputs.source_of(plan, plan.experiment.backbones[each]) for each in run_backbones(run)},
        "class_embeddings": None if table is None else inputs.class_embeddings(plan, table),
        "init": None if run.init is None or not run.init.is_named else _weights_named(plan, run.init.source),
        "codec": _codec_file(plan, run),
        "pairs": _pair_files(plan, run),
    }


def _weights_named(plan: Plan, name: str) -> Path:
    """Return the weights of an entry of `teachers`, or the last snapshot of a run."""
    if name in plan.experiment.teachers:
        return plan.results.teacher(name)
    return plan.results.snapshot(name, plan.written.runs[name].images)


def _codec_file(plan: Plan, run: Run) -> Path | None:
    return None if run.codec is None or run.codec.input is None else plan.results.codec(run.codec.input)


def _pair_files(plan: Plan, run: Run) -> tuple[Path, ...]:
    """Return the images of a run's pairs, which the stage `sample` makes."""
    teacher = pairs_teacher(run)
    if run.pairs is None or teacher is None:
        return ()
    return tuple(plan.results.samples(teacher, run.pairs.sampler, seeds) for seeds in run.pairs.seeds)


def train_rules(plan: Plan) -> list[TrainRule]:
    """The rule of each run."""
    chains = _chains(plan)
    return [_train_rule(plan, run, priority=chains[run]) for run in plan.experiment.runs]


def _chains(plan: Plan) -> dict[str, int]:
    """Return for each run its images and those of the longest chain of runs that start from its networks."""
    experiment, after = plan.experiment, defaultdict[str, list[str]](list)
    for name, run in experiment.runs.items():
        sources = [experiment.backbones[each].run for each in run_backbones(run)]
        sources += [] if run.teacher is None else [experiment.teachers[run.teacher].run]
        sources += [each for _, each in started_from(run, experiment)]
        for source in filter(None, sources):
            after[source].append(name)

    @functools.cache
    def length(name: str) -> int:
        return experiment.runs[name].images + max(map(length, after[name]), default=0)

    return {name: length(name) for name in experiment.runs}


def role_files(plan: Plan, name: str) -> dict[str, Path]:
    """Return the weights of further roles that a run publishes beside its last snapshot, by role."""
    run = plan.experiment.runs[name]
    roles = getattr(components.outline("objectives", run.objective.name), "also_publishes", ())
    return {role: plan.results.role_weights(name, run.images, role) for role in roles}


def averages_of(run: Run) -> tuple[int | float | None, ...]:
    """Return the averages of which a run publishes snapshots, as in their names; None is the main one."""
    return (None, *run.ema.others, *run.ema.power)


def kept_averages(plan: Plan, model: str) -> list[Path]:
    """Return the snapshots of the averages that a training keeps, of which one that is made afterwards follows."""
    made = parse_model(model)
    assert isinstance(made, Snapshot), model
    run = plan.experiment.runs[made.name]
    counts = [count for count in run.snapshots if count <= made.images]
    return [plan.results.snapshot(made.name, count, std) for count in counts for std in run.ema.power]


def average_options(model: str) -> str:
    """Return what is made of them, as options of `onestep average`."""
    made = parse_model(model)
    assert isinstance(made, Snapshot), model
    return f"--std {made.ema}"


def _train_rule(plan: Plan, name: str, *, priority: int) -> TrainRule:
    run = plan.experiment.runs[name]
    files = weight_files(plan, name)
    teacher, embeddings, initial, codec = (
        [] if (path := files[key]) is None else [path] for key in ("teacher", "class_embeddings", "init", "codec")
    )
    backbones = files["backbones"]
    options = [word for path in teacher for word in ("--teacher", str(path))]
    options += [word for backbone, path in backbones.items() for word in ("--backbone", f"{backbone}={path}")]
    options += [word for path in embeddings for word in ("--class-embeddings", str(path))]
    options += [word for path in initial for word in ("--init", str(path))]
    options += [word for path in codec for word in ("--codec", str(path))]
    options += [word for path in files["pairs"] for word in ("--pairs", str(path))]
    follows = plan.experiment.rerun.training_on_code_change
    found = progress_of_runs.progress(plan.written, name, results=plan.results, state=plan.state)
    snapshots = {
        plan.results.snapshot(name, images, ema): images for images in run.snapshots for ema in averages_of(run)
    }
    snapshots |= dict.fromkeys(role_files(plan, name).values(), run.images)
    goes_on = found.is_same and not all(path.exists() for path in snapshots)
    due = [path for path, images in snapshots.items() if images > found.finished or not path.exists()]
    return TrainRule(
        name=name,
        data=plan.results.data(run.dataset),
        weights=[*teacher, *dict.fromkeys(backbones.values()), *embeddings, *initial, *codec, *files["pairs"]],
        options=shlex.join([*options, *(["--code-in-spec"] if follows else [])]),
        snapshots=due if goes_on else [*snapshots],
        is_same=found.is_same,
        settled=dict(found.published.config) if found.published is not None and found.is_same and not goes_on else None,
        code=training_code(plan, name) if follows else "",
        priority=priority,
    )
