"""Functions of study.smk."""

from __future__ import annotations

from pathlib import Path

from onestep import studies
from onestep.files import canonical_json
from onestep.models import Snapshot, parse_model
from onestep.plan import Plan, measured
from onestep.plan.measure import metric_file
from onestep.studies import Observable


def study_files(plan: Plan, study: str) -> dict[str, list[Path]]:
    """Return the files of a study, by its own names."""
    return {name: _files(plan, each) for name, each in measured.observables(plan.experiment, study).items()}


def _files(plan: Plan, observable: Observable) -> list[Path]:
    match observable:
        case studies.Weights(model=model):
            return [plan.results.weights(parse_model(model))]
        case studies.SnapshotWeights(run=run):
            snapshots = plan.experiment.runs[run].snapshots
            return [plan.results.weights(Snapshot(name=run, images=images)) for images in snapshots]
        case studies.Samples(model=model, sampler=sampler, seeds=seeds):
            return [plan.results.samples(model, sampler, seeds)]
        case studies.Features(model=model, sampler=sampler, seeds=seeds, features=features):
            return [plan.results.features(model, sampler, seeds, features)]
        case studies.RealFeatures(dataset=dataset, features=features):
            return [plan.results.real_features(dataset, features)]
        case studies.RealImages(dataset=dataset):
            return [plan.results.data(dataset)]
        case studies.Log(run=run):
            return [plan.results.log(run)]
        case _:
            return [metric_file(plan, each) for each in measured.of_study(plan.experiment, observable)]


def study_file_options(plan: Plan, study: str) -> str:
    """Return the files of a study as JSON."""
    return canonical_json({name: list(map(str, files)) for name, files in study_files(plan, study).items()})
