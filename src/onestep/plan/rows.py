"""Which model stands in a row of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onestep.config.sections import Experiment
from onestep.config.sections import RowBlock as Row
from onestep.config.sections import TableBlock as Table
from onestep.models import Choice, Model, Selected, Snapshot, Teacher


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """A row of a table that is measured: a model of a run or teacher through a sampler.

    Attributes:
        name: The run or teacher.
        model: Its network.
        sampler: The sampler.
        trains: Whether it is a run.
    """

    name: str
    model: Model
    sampler: str
    trains: bool


class Rows:
    """The rows of the section `tables` that are measured.

    Args:
        experiment: The config.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def of(self, table: str) -> Iterator[RowPlan]:
        """Return the rows of a table."""
        layout = self._experiment.tables[table]
        return (self._row(row, layout) for row in layout.rows if row.is_measured)

    def trained(self, table: str) -> Iterator[RowPlan]:
        """Return those of them that are runs."""
        return (row for row in self.of(table) if row.trains)

    def _row(self, row: Row, table: Table) -> RowPlan:
        return RowPlan(
            name=row.run or row.teacher, model=self.model(row, table), sampler=row.sampler, trains=row.run is not None
        )

    def model(self, row: Row, table: Table) -> Model:
        """Return a row's model: a teacher, a run's last snapshot, or the one that the table has chosen."""
        if row.run is None:
            return Teacher(name=row.teacher)
        run = self._experiment.runs[row.run]
        ema = None if row.ema == run.ema.half_life else row.ema
        if table.selected_by is None or len(run.snapshots) == 1:
            return Snapshot(name=row.run, images=run.images, ema=ema)
        metric, _, value = table.columns[table.selected_by].partition(".")
        choice = Choice(metric=metric, value=value, sampler=row.sampler, seeds=table.selection_seeds)
        return Selected(name=row.run, choice=choice, ema=ema)
