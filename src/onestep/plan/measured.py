"""What is measured: the seed blocks and metrics of tables, curves, selections and studies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onestep import components
from onestep.config.sections import Experiment, RowBlock, TableBlock
from onestep.models import Choice, Model, Selected, Snapshot, Teacher, parse_model
from onestep.results import block
from onestep.studies import Measurements, Observable, SnapshotMeasurements


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """A row of a table that is measured here.

    Attributes:
        name: The run or the teacher.
        model: Its model.
        sampler: Its sampler.
        trains: True for a run.
    """

    name: str
    model: Model
    sampler: str
    trains: bool


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


def measured_rows(experiment: Experiment, table: str) -> list[MeasuredRow]:
    """Return the rows of a table that are measured here; of a family of runs one for each member."""
    layout = experiment.tables[table]
    return [
        MeasuredRow(name=model.name, model=model, sampler=row.sampler, trains=row.run is not None)
        for row in layout.rows
        if row.sampler is not None
        for model in row_models(experiment, row, table=layout)
    ]


def row_models(experiment: Experiment, row: RowBlock, *, table: TableBlock) -> list[Model]:
    """Return the models of a row: a teacher, or of each run the last snapshot or the best by the table's choice."""
    if row.teacher is not None:
        return [Teacher(name=row.teacher)]
    return [_run_model(experiment, run, row=row, table=table) for run in row.members]


def _run_model(experiment: Experiment, name: str, *, row: RowBlock, table: TableBlock) -> Model:
    run = experiment.runs[name]
    ema = None if row.ema == run.ema.half_life else row.ema
    if table.selected_by is None or len(run.snapshots) == 1:
        return Snapshot(name=name, images=run.images, ema=ema)
    assert row.sampler is not None, row
    metric, _, value = table.columns[table.selected_by].partition(".")
    choice = Choice(metric=metric, value=value, sampler=row.sampler, seeds=table.selection_seeds)
    return Selected(name=name, choice=choice, ema=ema)


def candidates(experiment: Experiment, model: Snapshot | Selected) -> list[Snapshot]:
    """Return all snapshots of a model's run and EMA, the earliest first."""
    return [Snapshot(name=model.name, images=n, ema=model.ema) for n in experiment.runs[model.name].snapshots]


def of_table(experiment: Experiment, table: str) -> Iterator[Measured]:
    """Yield what the cells of a table need."""
    layout = experiment.tables[table]
    for row in measured_rows(experiment, table):
        for seeds in layout.seeds:
            for metric in table_metrics(layout):
                yield Measured(model=row.model, sampler=row.sampler, seeds=seeds, metric=metric)


def of_curves(experiment: Experiment, table: str) -> Iterator[Measured]:
    """Yield what the curves of a table need: each snapshot of each row whose run has several."""
    layout = experiment.tables[table]
    if layout.curves is None:
        return
    metric = layout.columns[layout.curves.column].partition(".")[0]
    for row in measured_rows(experiment, table):
        points = [] if isinstance(row.model, Teacher) else candidates(experiment, row.model)
        for point in points if len(points) > 1 else ():
            yield Measured(model=point, sampler=row.sampler, seeds=layout.curves.seeds, metric=metric)


def of_candidates(experiment: Experiment, model: Selected) -> Iterator[Measured]:
    """Yield the numbers by which a snapshot is selected."""
    by = model.choice
    for candidate in candidates(experiment, model):
        yield Measured(model=candidate, sampler=by.sampler, seeds=by.seeds, metric=by.metric)


def of_study(experiment: Experiment, observable: Observable) -> list[Measured]:
    """Return the numbers that a study reads; none for an observable of another kind."""
    match observable:
        case Measurements(model=name, sampler=sampler, seeds=blocks, metric=metric):
            models = [parse_model(name)]
        case SnapshotMeasurements(run=run, sampler=sampler, seeds=blocks, metric=metric):
            models = [Snapshot(name=run, images=images) for images in experiment.runs[run].snapshots]
        case _:
            return []
    return [Measured(model=m, sampler=sampler, seeds=seeds, metric=metric) for m in models for seeds in blocks]


def of_experiment(experiment: Experiment) -> Iterator[Measured]:
    """Yield all that is measured; some of it more than once."""
    for table in experiment.tables:
        yield from of_table(experiment, table)
        yield from of_curves(experiment, table)
        for row in measured_rows(experiment, table):
            if isinstance(row.model, Selected):
                yield from of_candidates(experiment, row.model)
    for observable in all_observables(experiment):
        yield from of_study(experiment, observable)


def observables(experiment: Experiment, study: str) -> Mapping[str, Observable]:
    """Return what a study reads, by its own names.

    Raises:
        ValueError: The study computes it with packages that are missing here.
    """
    built = components.build_outline("studies", experiment.studies[study])
    if built is None:
        raise ValueError(
            f"studies.{study}: observes() needs packages that are missing here. Fix: import them in conclude()"
        )
    found: Mapping[str, Observable] = built.observes()
    return found


def all_observables(experiment: Experiment) -> list[Observable]:
    """Return what all studies read."""
    return [each for study in experiment.studies for each in observables(experiment, study).values()]


def table_metrics(table: TableBlock) -> list[str]:
    """Return the metrics of a table's columns."""
    return list(dict.fromkeys(source.partition(".")[0] for source in table.columns.values()))
