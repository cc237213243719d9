"""Consistency of what generates images, compares with generated ones, and learns from them.

These are chains, metrics `against` a run, and `pairs` of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onestep.chain import sampler_misfit
from onestep.config.blocks import networks_of
from onestep.config.constraints import seeds_of
from onestep.config.known import shape_of, teacher_differences
from onestep.config.messages import MISSING, Place, Problem, exactly_one, got, unknown
from onestep.config.run_checks import denoisers
from onestep.config.sections import AgainstBlock, Experiment
from onestep.config.starts import pairs_teacher, started_from
from onestep.config.table_checks import backwards, few_seeds


@dataclass(frozen=True, kw_only=True)
class _Use:
    """Seed blocks of images of a run by a sampler, and the metrics that measure them."""

    place: Place
    run: str
    sampler: str
    seeds: tuple[str, ...]
    metrics: tuple[str, ...]


def generated_problems(
    experiment: Experiment, *, objectives: Mapping[str, Any], metrics: Mapping[str, Any], studies: Mapping[str, Any]
) -> Iterator[Problem]:
    """Yield samplers that do not fit their runs, and what is wrong with metrics that compare with generated images.

    Objectives, metrics and studies that cannot be built without torch are None, and are not checked.
    """
    steps = {name: getattr(objective, "samples_in", None) for name, objective in objectives.items()}
    uses = [*_uses(experiment, studies=studies)]
    for name, metric in experiment.metrics.items():
        if metric.against is not None:
            place = ("metrics", name, "against")
            yield from _against_problems(name, metric.against, experiment, metrics=metrics, place=place)
            uses += _uses_of(metric.against, experiment, place=(*place, "sampler"))
    for name in experiment.runs:
        yield from _pairs_problems(name, experiment, objective=objectives.get(name), place=("runs", name, "pairs"))
        uses += _uses_of_pairs(name, experiment)
    yield from _guide_problems(experiment)
    levels = {name: getattr(objective, "samples_at", None) for name, objective in objectives.items()}
    for use in uses:
        yield from _sampler_problems(use, experiment, steps=steps.get(use.run), sigma=levels.get(use.run))
        yield from _learned_problems(use, experiment)
        for measured in use.metrics:
            yield from _overlap_problems(use, measured, experiment)


def _uses(experiment: Experiment, *, studies: Mapping[str, Any]) -> Iterator[_Use]:
    for name, table in experiment.tables.items():
        metrics = tuple(dict.fromkeys(source.partition(".")[0] for source in table.columns.values()))
        blocks = (*table.seeds, *(() if table.select_seeds is None else (table.select_seeds,)))
        for index, row in enumerate(table.rows):
            for run in _trained(experiment, [*row.members, row.teacher]) if row.sampler is not None else ():
                place = ("tables", name, "rows", index)
                yield _Use(place=place, run=run, sampler=row.sampler or "", seeds=blocks, metrics=metrics)
    for name, study in studies.items():
        for each in () if study is None else study.observes().values():
            model, sampler, seeds = (getattr(each, key, None) for key in ("model", "sampler", "seeds"))
            named = getattr(each, "run", None) if model is None else model.partition("@")[0]
            blocks = (seeds,) if isinstance(seeds, str) else tuple(seeds or ())
            measured = (each.metric,) if hasattr(each, "metric") else ()
            for run in _trained(experiment, [named]):
                yield _Use(place=("studies", name), run=run, sampler=sampler or "", seeds=blocks, metrics=measured)


def _uses_of(against: AgainstBlock, experiment: Experiment, *, place: Place) -> Iterator[_Use]:
    for run in _trained(experiment, [*against.members, against.teacher]):
        yield _Use(place=place, run=run, sampler=against.sampler, seeds=(), metrics=())


def _uses_of_pairs(name: str, experiment: Experiment) -> Iterator[_Use]:
    run = experiment.runs[name]
    if run.pairs is not None:
        for each in _trained(experiment, [pairs_teacher(run)]):
            place = ("runs", name, "pairs", "sampler")
            yield _Use(place=place, run=each, sampler=run.pairs.sampler, seeds=(), metrics=())


def _trained(experiment: Experiment, names: Sequence[str | None]) -> list[str]:
    """Return the runs among the names of runs and teachers, and those that trained the teachers."""
    teachers = experiment.teachers
    sources = (teachers[name].run if name in teachers else name for name in names if name is not None)
    return [name for name in sources if name in experiment.runs and name is not None]


def _sampler_problems(
    use: _Use, experiment: Experiment, *, steps: int | None, sigma: float | None
) -> Iterator[Problem]:
    sampler = experiment.samplers.get(use.sampler)
    if sampler is None:
        return
    if wrong := sampler_misfit({"name": sampler.name, **sampler.options}, steps=steps, sigma=sigma):
        yield Problem(use.place, f"{use.run} by {use.sampler}: {wrong}")
    guide, run = sampler.options.get("guide"), experiment.runs[use.run]
    if sampler.name != "guided" or (guide is not None and guide not in experiment.teachers):
        return
    if guide is None and not run.conditional:
        found = f"{use.run} by {use.sampler}: got no guide, and {use.run} has no class that a guide could lack"
        yield Problem(use.place, f"{found}. Fix: guide: an entry of teachers")
    if guide is not None and run.dataset in experiment.datasets:
        shapes = {name: shape_of(experiment, name) for name in experiment.datasets}
        for key, found, expected in teacher_differences(replace(run, teacher=guide), experiment, shapes=shapes):
            if key != "conditional" or not run.conditional:
                yield Problem(use.place, f"guide {guide} of {use.sampler}: got {key} {found}, expected {expected}")


def _guide_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield guides that are no teachers."""
    for name, sampler in experiment.samplers.items():
        if sampler.name == "guided":
            place = ("samplers", name, "guide")
            yield from unknown(place, sampler.options.get("guide"), experiment.teachers, of="teachers")


def _overlap_problems(use: _Use, metric: str, experiment: Experiment) -> Iterator[Problem]:
    """Yield images that are compared with a part of themselves, which would make a distance too small."""
    block = experiment.metrics.get(metric)
    against = None if block is None else block.against
    if against is None or against.seeds is None or (use.run, use.sampler) not in _sampled(against, experiment):
        return
    for text in use.seeds:
        if _overlap(text, against.seeds):
            found = f"seeds {text} of {use.run} by {use.sampler} overlap {against.seeds} of metrics.{metric}.against"
            yield Problem(use.place, f"{found}, expected other images")


def _sampled(against: AgainstBlock, experiment: Experiment) -> list[tuple[str, str]]:
    return [(run, against.sampler) for run in _trained(experiment, [*against.members, against.teacher])]


def _against_problems(
    name: str, against: AgainstBlock, experiment: Experiment, *, metrics: Mapping[str, Any], place: Place
) -> Iterator[Problem]:
    if wrong := exactly_one(vars(against), "run", "teacher"):
        yield Problem(place, wrong)
    for run in against.members:
        yield from unknown((*place, "run"), run, denoisers(experiment), of="runs of a denoiser")
    yield from unknown((*place, "teacher"), against.teacher, experiment.teachers, of="teachers")
    yield from unknown((*place, "sampler"), against.sampler, experiment.samplers, of="samplers")
    if against.seeds is not None:
        yield from backwards(against.seeds, place=(*place, "seeds"))
        yield from few_seeds(against.seeds, name, metrics, place=(*place, "seeds"))


def _pairs_problems(name: str, experiment: Experiment, *, objective: Any, place: Place) -> Iterator[Problem]:
    run = experiment.runs[name]
    if run.pairs is None:
        return  # that an objective lacks them is found with its networks
    declared = networks_of(objective)
    if declared and all(origin.kind != "SampledPairs" for origin in declared.values()):
        yield Problem(place, f"objective {run.objective.name} learns from no pairs. Fix: remove it")
    if pairs_teacher(run) is None:
        yield Problem((*place, "teacher"), f"{MISSING} without `teacher` of the run")
    yield from unknown((*place, "teacher"), run.pairs.teacher, experiment.teachers, of="teachers")
    yield from unknown((*place, "sampler"), run.pairs.sampler, experiment.samplers, of="samplers")
    sampler = experiment.samplers.get(run.pairs.sampler)
    adding = next((key for key in ("churn", "noise") if sampler is not None and sampler.options.get(key)), None)
    if adding is not None:
        found = f"{got(run.pairs.sampler)}, whose {adding} adds noise"
        yield Problem((*place, "sampler"), f"{found}, expected one whose images follow from noise and class")
    for index, text in enumerate(run.pairs.seeds):
        yield from backwards(text, place=(*place, "seeds", index))
        if common := next((each for each in run.pairs.seeds[:index] if _overlap(each, text)), None):
            yield Problem((*place, "seeds", index), f"{text} overlaps {common}, expected each seed once")


def _learned_problems(use: _Use, experiment: Experiment) -> Iterator[Problem]:
    """Yield images from noise that a run, or the one that it starts from, was trained on: they are no test of it."""
    run = experiment.runs[use.run]
    started = [experiment.runs[name] for _, name in started_from(run, experiment)]
    for blocks in (each.pairs.seeds for each in (run, *started) if each.pairs is not None):
        for text in use.seeds:
            if common := next((each for each in blocks if _overlap(each, text)), None):
                found = f"seeds {text} of {use.run} by {use.sampler} overlap {common}, pairs that it learns from"
                yield Problem(use.place, f"{found}, expected other noise")


def _overlap(one: str, other: str) -> bool:
    """Whether two blocks of seeds have a seed in common."""
    a, b = seeds_of(one), seeds_of(other)
    return max(a.start, b.start) < min(a.stop, b.stop)
