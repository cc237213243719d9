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


def table_metrics(table: TableBlock) -> list[str]:
    """Return the metrics of a table's columns."""
    return list(dict.fromkeys(source.partition(".")[0] for source in table.columns.values()))
