"""What is measured: the seed blocks and metrics of tables, curves, selections and studies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from onestep import components
from onestep.config.sections import Experiment
from onestep.config.starts import started_from
from onestep.config.tables import RowBlock, TableBlock
from onestep.models import Choice, Model, Selected, Snapshot, Teacher, parse_model
from onestep.results import block
from onestep.studies import Measurements, Observable, SnapshotMeasurements


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one seed block of one model."""

    model: Model
    sampler: str
    seeds: str
    metric: str

    @property
    def block(self) -> str:
        """The name of the seed block."""
        return block(self.model, self.sampler, self.seeds)


def measured_rows(experiment: Experiment, table: str) -> list[tuple[Model, str]]:
    """Return the model and the sampler of each row of a table that is measured here; of a family each member."""
    layout = experiment.tables[table]
    rows = [(row, row.sampler) for row in layout.rows if row.sampler is not None]
    return [(model, sampler) for row, sampler in rows for model in row_models(experiment, row, table=layout)]


def row_models(experiment: Experiment, row: RowBlock, *, table: TableBlock) -> list[Model]:
    """Return the models of a row: a teacher, or of each run the last snapshot or the best by the table's choice."""
    if row.teacher is not None:
        return [Teacher(name=row.teacher)]
    models: list[Model] = []
    for name in row.members:
        run = experiment.runs[name]
        ema = None if row.ema == run.ema.half_life else row.ema
        if table.selected_by is None or len(run.snapshots) == 1:
            models.append(Snapshot(name=name, images=run.images, ema=ema))
        else:
            assert row.sampler is not None, row
            metric, _, value = table.columns[table.selected_by].partition(".")
            choice = Choice(metric=metric, value=value, sampler=row.sampler, seeds=table.selection_seeds)
            models.append(Selected(name=name, choice=choice, ema=ema))
    return models


def candidates(experiment: Experiment, model: Snapshot | Selected) -> list[Snapshot]:
    """Return all snapshots of a model's run and EMA, the earliest first."""
    return [Snapshot(name=model.name, images=n, ema=model.ema) for n in experiment.runs[model.name].snapshots]


def of_table(experiment: Experiment, table: str) -> Iterator[Measured]:
    """Yield what the cells of a table need."""
    layout = experiment.tables[table]
    for model, sampler in measured_rows(experiment, table):
        for seeds in layout.seeds:
            for metric in table_metrics(layout):
                yield Measured(model=model, sampler=sampler, seeds=seeds, metric=metric)


def of_curves(experiment: Experiment, table: str) -> Iterator[Measured]:
    """Yield what the curves of a table need: each snapshot of each row whose run has several."""
    layout = experiment.tables[table]
    if layout.curves is None:
        return
    metric = layout.columns[layout.curves.column].partition(".")[0]
    for model, sampler in measured_rows(experiment, table):
        points = [] if isinstance(model, Teacher) else candidates(experiment, model)
        for point in points if len(points) > 1 else ():
            yield Measured(model=point, sampler=sampler, seeds=layout.curves.seeds, metric=metric)


def of_candidates(experiment: Experiment, model: Selected) -> Iterator[Measured]:
    """Yield the numbers by which a snapshot is selected."""
    by = model.choice
    for candidate in candidates(experiment, model):
        yield Measured(model=candidate, sampler=by.sampler, seeds=by.seeds, metric=by.metric)


def of_study(experiment: Experiment, observable: Observable) -> list[Measured]:
    """Return the numbers that a study reads; none for an observable of another kind."""
    match observable:
        case Measurements(model=name, sampler=sampler, seeds=blocks, metric=metric):
            models = [model_named(experiment, name)]
        case SnapshotMeasurements(run=run, sampler=sampler, seeds=blocks, metric=metric):
            models = [Snapshot(name=run, images=images) for images in experiment.runs[run].snapshots]
        case _:
            return []
    return [Measured(model=m, sampler=sampler, seeds=seeds, metric=metric) for m in models for seeds in blocks]


def model_named(experiment: Experiment, name: str) -> Model:
    """Return the model that a study names: a teacher, `run@images`, or by the name of a run its last snapshot."""
    run = experiment.runs.get(name)
    return parse_model(name) if run is None else Snapshot(name=name, images=run.images)


def compared_with(experiment: Experiment, measured: Measured) -> str | None:
    """Return the seed block of the generated images that a metric compares with; None if these are real ones.

    See `onestep.config.sections.AgainstBlock`.
    """
    against = experiment.metrics[measured.metric].against
    if against is None:
        return None
    seeds = against.seeds or measured.seeds
    if against.teacher is not None:
        return block(Teacher(name=against.teacher), against.sampler, seeds)
    members, name = list(against.members), measured.model.name
    if name in members:
        chosen = members[(members.index(name) + (against.seeds is None)) % len(members)]
    else:
        seed = experiment.runs[name].seed if name in experiment.runs else None
        chosen = next((each for each in members if experiment.runs[each].seed == seed), members[0])
    return block(model_named(experiment, chosen), against.sampler, seeds)


def of_experiment(experiment: Experiment) -> Iterator[Measured]:
    """Yield all that is measured; some of it more than once."""
    for table in experiment.tables:
        yield from of_table(experiment, table)
        yield from of_curves(experiment, table)
        for model, _ in measured_rows(experiment, table):
            if isinstance(model, Selected):
                yield from of_candidates(experiment, model)
    for observable in all_observables(experiment):
        yield from of_study(experiment, observable)


def observables(experiment: Experiment, study: str) -> Mapping[str, Observable]:
    """Return what a study reads, by its own names. ValueError: Packages that compute it are missing here."""
    built = components.build_outline("studies", experiment.studies[study])
    if built is None:
        fix = "Fix: import them in conclude()"
        raise ValueError(f"studies.{study}: observes() needs packages that are missing here. {fix}")
    found: Mapping[str, Observable] = built.observes()
    return found


def all_observables(experiment: Experiment) -> list[Observable]:
    """Return what all studies read."""
    return [each for study in experiment.studies for each in observables(experiment, study).values()]


def default_studies(experiment: Experiment) -> list[str]:
    """Return the studies that are made without being a target."""
    return [name for name, study in experiment.studies.items() if not study.on_request]


def default_runs(experiment: Experiment) -> list[str]:
    """Return the runs that are trained without being a target: all but those of studies on request alone.

    Nor those from which only such runs start.
    """
    shown = {name for table in experiment.tables.values() for row in table.rows for name in row.members}
    of_studies = {name: set(_observed(experiment, name)) for name in experiment.studies}
    shown.update(*(of_studies[name] for name in default_studies(experiment)))
    aside = {name for runs in of_studies.values() for name in runs} - shown
    starting = _starting(experiment) if aside else {}
    shown.update(_trained_by(experiment, shown))
    while more := {name for name, users in starting.items() if name not in shown | aside and users <= aside}:
        aside |= more
    return [name for name in experiment.runs if name not in aside]


def _trained_by(experiment: Experiment, names: Iterable[str]) -> set[str]:
    """Return the runs that trained the teachers among names, in rows of tables, and that metrics compare with."""
    against = [metric.against for metric in experiment.metrics.values() if metric.against is not None]
    teachers = [*names, *(row.teacher for table in experiment.tables.values() for row in table.rows)]
    teachers += [each.teacher for each in against]
    sources = [experiment.teachers[each].run for each in filter(None, teachers) if each in experiment.teachers]
    return {each for each in [*sources, *(run for block in against for run in block.members)] if each is not None}


def _starting(experiment: Experiment) -> dict[str, set[str]]:
    """Return by run those that start from its network or images: it is their teacher, or they name it otherwise."""
    found: dict[str, set[str]] = {}
    for name, run in experiment.runs.items():
        sources = [each for _, each in started_from(run, experiment)]
        sources += [] if run.teacher is None else [experiment.teachers[run.teacher].run or ""]
        for source in filter(None, sources):
            found.setdefault(source, set()).add(name)
    return found


def _observed(experiment: Experiment, study: str) -> Iterator[str]:
    """Yield the runs that a study observes."""
    for each in observables(experiment, study).values():
        run, model = getattr(each, "run", None), getattr(each, "model", None)
        if run is not None or model is not None:
            yield run or str(model).partition("@")[0]


def table_metrics(table: TableBlock) -> list[str]:
    """Return the metrics of a table's columns."""
    return list(dict.fromkeys(source.partition(".")[0] for source in table.columns.values()))
