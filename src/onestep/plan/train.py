"""Functions of train.smk."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep.config.reading import run_backbones, run_document
from onestep.files import canonical_json
from onestep.plan import Plan, inputs


@dataclass(frozen=True, kw_only=True)
class TrainRule:
    """What differs between the train rules of two runs."""

    name: str
    data: Path
    weights: list[Path]  # the teacher, the backbones and the class embeddings
    options: str  # the same as options of `onestep launch`, quoted for a shell
    snapshots: list[Path]
    code: str  # code fingerprint if config.yaml lets training follow its code, else empty


def run_config(plan: Plan, run: str) -> str:
    """Return the resolved configuration of a run."""
    return canonical_json(run_document(plan.experiment, run))


def training_code(plan: Plan, run: str) -> str:
    """Return the fingerprint of today's training code of a run."""
    return plan.fingerprints.of_training(run_document(plan.experiment, run))


def weight_files(plan: Plan, name: str) -> dict[str, Any]:
    """Return the files of the networks that a run starts from: `teacher`, `backbones` by name, `class_embeddings`."""
    run = plan.experiment.runs[name]
    table = None if run.discriminator is None else run.discriminator.class_embeddings
    return {
        "teacher": None if run.teacher is None else plan.results.teacher(run.teacher),
        "backbones": {each: inputs.source_of(plan, plan.experiment.backbones[each]) for each in run_backbones(run)},
        "class_embeddings": None if table is None else inputs.class_embeddings(plan, table),
    }


def train_rules(plan: Plan) -> list[TrainRule]:
    """The rule of each run."""
    return [_train_rule(plan, run) for run in plan.experiment.runs]


def _train_rule(plan: Plan, name: str) -> TrainRule:
    run = plan.experiment.runs[name]
    files = weight_files(plan, name)
    teacher, embeddings = ([] if (path := files[key]) is None else [path] for key in ("teacher", "class_embeddings"))
    backbones = files["backbones"]
    options = [word for path in teacher for word in ("--teacher", str(path))]
    options += [word for backbone, path in backbones.items() for word in ("--backbone", f"{backbone}={path}")]
    options += [word for path in embeddings for word in ("--class-embeddings", str(path))]
    follows = plan.experiment.rerun.training_on_code_change
    emas = (None, *run.ema.others)
    return TrainRule(
        name=name,
        data=plan.results.data(run.dataset),
        weights=[*teacher, *dict.fromkeys(backbones.values()), *embeddings],
        options=shlex.join([*options, *(["--code-in-spec"] if follows else [])]),
        snapshots=[plan.results.snapshot(name, images, ema) for images in run.snapshots for ema in emas],
        code=training_code(plan, name) if follows else "",
    )
