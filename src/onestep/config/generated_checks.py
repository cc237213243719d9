"""Consistency of what generates images and compares with generated ones: chains, and metrics `against` a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onestep.chain import sampler_misfit
from onestep.config.messages import Place, Problem, exactly_one, unknown
from onestep.config.run_checks import denoisers
from onestep.config.sections import AgainstBlock, Experiment
from onestep.config.table_checks import backwards, few_seeds, seeds_of


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
    for use in uses:
        yield from _sampler_problems(use, experiment, steps=steps.get(use.run))
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


def _trained(experiment: Experiment, names: Sequence[str | None]) -> list[str]:
    """Return the runs among the names of runs and teachers, and those that trained the teachers."""
    teachers = experiment.teachers
    sources = (teachers[name].run if name in teachers else name for name in names if name is not None)
    return [name for name in sources if name in experiment.runs and name is not None]


def _sampler_problems(use: _Use, experiment: Experiment, *, steps: int | None) -> Iterator[Problem]:
    sampler = experiment.samplers.get(use.sampler)
    if sampler is None:
        return
    if wrong := sampler_misfit({"name": sampler.name, **sampler.options}, steps=steps):
        yield Problem(use.place, f"{use.run} by {use.sampler}: {wrong}")


def _overlap_problems(use: _Use, metric: str, experiment: Experiment) -> Iterator[Problem]:
    """Yield images that are compared with a part of themselves, which would make a distance too small."""
    block = experiment.metrics.get(metric)
    against = None if block is None else block.against
    if against is None or against.seeds is None or (use.run, use.sampler) not in _sampled(against, experiment):
        return
    others = seeds_of(against.seeds)
    for text in use.seeds:
        seeds = seeds_of(text)
        if max(seeds.start, others.start) < min(seeds.stop, others.stop):
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
