"""What is measured: the seed blocks and metrics of tables, curves and selections, in the order of the config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onestep.config.sections import Experiment, RowBlock, TableBlock
from onestep.models import Choice, Model, Selected, Snapshot, Teacher
from onestep.results import block


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
    """Return the rows of a table that are measured here."""
    layout = experiment.tables[table]
    return [
        MeasuredRow(
            name=name, model=row_model(experiment, row, table=layout), sampler=row.sampler, trains=row.run is not None
        )
        for row in layout.rows
        if (name := row.run or row.teacher) is not None and row.sampler is not None
    ]


def row_model(experiment: Experiment, row: RowBlock, *, table: TableBlock) -> Model:
    """Return the model of a measured row: a teacher, a run's last snapshot, or the best by the table's choice."""
    if row.run is None:
        assert row.teacher is not None, row
        return Teacher(name=row.teacher)
    run = experiment.runs[row.run]
    ema = None if row.ema == run.ema.half_life else row.ema
    if table.selected_by is None or len(run.snapshots) == 1:
        return Snapshot(name=row.run, images=run.images, ema=ema)
    assert row.sampler is not None, row
    metric, _, value = table.columns[table.selected_by].partition(".")
    choice = Choice(metric=metric, value=value, sampler=row.sampler, seeds=table.selection_seeds)
    return Selected(name=row.run, choice=choice, ema=ema)


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


def of_experiment(experiment: Experiment) -> Iterator[Measured]:
    """Yield all that is measured; some of it more than once."""
    for table in experiment.tables:
        yield from of_table(experiment, table)
        yield from of_curves(experiment, table)
        for row in measured_rows(experiment, table):
            if isinstance(row.model, Selected):
                yield from of_candidates(experiment, row.model)


def table_metrics(table: TableBlock) -> list[str]:
    """Return the metrics of a table's columns."""
    return list(dict.fromkeys(source.partition(".")[0] for source in table.columns.values()))
