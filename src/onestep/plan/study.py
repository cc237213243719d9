"""Functions of study.smk."""

from __future__ import annotations

from pathlib import Path

from onestep import components, studies
from onestep.config.reading import run_backbones, run_document
from onestep.files import canonical_json
from onestep.fingerprint import Component, training_components
from onestep.models import Snapshot
from onestep.plan import Plan, measured
from onestep.plan.measure import metric_file
from onestep.plan.sample import networks_of
from onestep.studies import Observable


def study_files(plan: Plan, study: str) -> dict[str, list[Path]]:
    """Return the files of a study, by its own names."""
    return {name: _files(plan, each) for name, each in measured.observables(plan.experiment, study).items()}


def _files(plan: Plan, observable: Observable) -> list[Path]:
    match observable:
        case studies.Weights(model=model):
            return [plan.results.weights(measured.model_named(plan.experiment, model))]
        case studies.SnapshotWeights(run=run):
            snapshots = plan.experiment.runs[run].snapshots
            return [plan.results.weights(Snapshot(name=run, images=images)) for images in snapshots]
        case studies.RoleWeights(run=run, role=role):
            return [plan.results.role_weights(run, plan.experiment.runs[run].images, role)]
        case studies.Samples(model=model, sampler=sampler, seeds=seeds):
            return [plan.results.samples(measured.model_named(plan.experiment, model), sampler, seeds)]
        case studies.Features(model=model, sampler=sampler, seeds=seeds, features=features):
            return [plan.results.features(measured.model_named(plan.experiment, model), sampler, seeds, features)]
        case studies.SnapshotFeatures(run=run, sampler=sampler, seeds=seeds, features=features):
            models = [Snapshot(name=run, images=images) for images in plan.experiment.runs[run].snapshots]
            return [plan.results.features(each, sampler, seeds, features) for each in models]
        case studies.RealFeatures(dataset=dataset, features=features):
            return [plan.results.real_features(dataset, features)]
        case studies.RealImages(dataset=dataset):
            return [plan.results.data(dataset)]
        case studies.Log() | studies.Configuration() | studies.Summary() | studies.Work():
            return [_record(plan, observable)]
        case _:
            return [metric_file(plan, each) for each in measured.of_study(plan.experiment, observable)]


def _record(plan: Plan, observable: studies.Log | studies.Configuration | studies.Summary | studies.Work) -> Path:
    """Return a record of a run."""
    match observable:
        case studies.Log(run=run):
            return plan.results.log(run)
        case studies.Configuration(run=run):
            return plan.results.run_config(run)
        case studies.Summary(run=run):
            return plan.results.summary(run)
        case studies.Work(run=run):
            return plan.results.work(run)


def work_options(plan: Plan, run: str) -> str:
    """Return all that the work of a run depends on in config.yaml, as JSON: the run and those that it starts from."""
    chosen = plan.written.runs[run]
    backbones = {name: plan.written.backbones[name] for name in run_backbones(chosen)}
    teacher = None if chosen.teacher is None else plan.written.teachers[chosen.teacher]
    sources = [*(each.run for each in backbones.values()), None if teacher is None else teacher.run]
    content = {
        "run": run_document(plan.written, run),
        "teacher": None if teacher is None else teacher.input,
        "processes": plan.written.launch.of(run).processes,
        "from": {name: run_document(plan.written, name) for name in filter(None, sources)},
    }
    return canonical_json(content)


def work_code(plan: Plan, run: str) -> str:
    """Return the code fingerprint of the count of a run's work."""
    return plan.fingerprints.of_stage("work", training_components(run_document(plan.written, run)))


def study_code(plan: Plan, study: str) -> str:
    """Return the code fingerprint of a study, with the networks that it runs."""
    found = measured.observables(plan.experiment, study).values()
    models = [each.model for each in found if isinstance(each, studies.Weights)]
    models += [each.run for each in found if isinstance(each, studies.SnapshotWeights)]
    networks = [each for model in models for each in networks_of(plan, model.partition("@")[0])]
    networks += [part for each in found if isinstance(each, studies.RoleWeights) for part in _role_parts(plan, each)]
    built = ("studies", plan.experiment.studies[study].name)
    return plan.fingerprints.of_stage("study", [built, *dict.fromkeys(networks)])


def _role_parts(plan: Plan, observable: studies.RoleWeights) -> list[Component]:
    """Return the component of a role, and the run's network, of whose parts it may consist."""
    block = plan.experiment.runs[observable.run].networks[observable.role]
    families = ("ratios", "networks", "discriminators")
    own = [(each, block.name) for each in families if ":" in block.name or block.name in components.choices(each)]
    return [*own, *networks_of(plan, observable.run)]


def study_file_options(plan: Plan, study: str) -> str:
    """Return the files of a study as JSON."""
    return canonical_json({name: list(map(str, files)) for name, files in study_files(plan, study).items()})
