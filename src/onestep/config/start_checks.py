"""Whether what a run starts from fits it: its initial weights, and the teacher of its pairs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from onestep.config.blocks import Origin
from onestep.config.freezing import matches
from onestep.config.known import Shape, Tries, teacher_differences, trained_with
from onestep.config.messages import Place, Problem, got, unknown
from onestep.config.run import Run
from onestep.config.run_checks import denoisers
from onestep.config.sections import Experiment
from onestep.config.starts import FRESH, TEACHER


def init_problems(
    run: Run,
    experiment: Experiment,
    *,
    declared: Mapping[str, Origin],
    shapes: Mapping[str, Shape],
    tries: Tries,
    place: Place,
) -> Iterator[Problem]:
    """Yield initial weights that are not there, are of another architecture, or are redrawn by unknown names."""
    init = run.init
    if init is None:
        return
    if declared and all(origin.kind != "Pretrained" for origin in declared.values()):
        yield Problem(place, f"objective {run.objective.name} trains no generator. Fix: remove it")
    if init.source == TEACHER and run.teacher is None:
        yield Problem((*place, "from"), f"got {TEACHER}, and the run has none. Fix: name other weights, or a teacher")
    for key in ("redraw", "shuffle"):
        if init.source == FRESH and getattr(init, key):
            fresh = f"{got(getattr(init, key))} with from: {FRESH}, whose weights are all fresh. Fix: remove it"
            yield Problem((*place, key), fresh)
    if init.is_named:
        choices = {**experiment.teachers, **dict.fromkeys(denoisers(experiment))}
        yield from unknown((*place, "from"), init.source, choices, of="teachers and runs of a denoiser")
    known = functools.partial(_parameters, experiment, shapes=shapes, tries=tries, as_teacher=run.network is None)
    own = known(run)
    for index, pattern in enumerate(init.redraw):
        if own and not any(matches(name, [pattern]) for name in own):
            expected = "expected a pattern of its parameters' names, such as model.map_layer*"
            yield Problem((*place, "redraw", index), f"{got(pattern)}, which is none of the network, {expected}")
    teacher = experiment.teachers.get(init.source)
    source = experiment.runs.get(init.source if teacher is None else teacher.run or "")
    other = {} if source is None else known(source)
    differing = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
    if own and other and differing:
        name = differing[0]
        found = f"got {init.source}, whose {name} is {other.get(name, 'absent')}"
        yield Problem((*place, "from"), f"{found}, expected {own.get(name, 'none')}, that of the run's network")


def _parameters(
    experiment: Experiment, run: Run, *, shapes: Mapping[str, Shape], tries: Tries, as_teacher: bool
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of a run's generator by name; empty where they are not known here.

    Without those that a generator does not take from its teacher if the network is one.
    """
    network, found = tries.generator(trained_with(run, experiment), shapes=shapes)
    left_out = getattr(network, "teacher_only", ()) if as_teacher else ()
    return {name: each for name, each in found.items() if not matches(name, left_out)}


def pairs_problems(run: Run, experiment: Experiment, *, shapes: Mapping[str, Shape], place: Place) -> Iterator[Problem]:
    """Yield a teacher of pairs for other images than those of the run; the run's own is compared anyway."""
    if run.pairs is None or run.pairs.teacher in (None, run.teacher):
        return
    other = replace(run, teacher=run.pairs.teacher)
    for key, found, expected in teacher_differences(other, experiment, shapes=shapes):
        yield Problem(place, f"got {key} {found}, expected {expected}")
