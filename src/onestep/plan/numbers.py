"""Everything that is measured: for tables, for their curves, and to choose snapshots by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onestep.config.sections import Experiment
from onestep.models import Model, Selected
from onestep.plan.paths import RESULTS
from onestep.plan.rows import Rows
from onestep.plan.snapshots import Snapshots


@dataclass(frozen=True, kw_only=True)
class Number:
    """A metric of one block of a model's images.

    Attributes:
        model: Whose images.
        sampler: What draws them.
        seeds: Their seeds, "first-last".
        metric: What is measured of them.
    """

    model: Model
    sampler: str
    seeds: str
    metric: str

    @property
    def block(self) -> str:
        """The name of the block of images."""
        return f"{self.model}/{self.sampler}/{self.seeds}"

    @property
    def path(self) -> str:
        """The file of the number."""
        return f"{RESULTS}/metrics/{self.block}.{self.metric}.json"


class Numbers:
    """The numbers that tables ask for.

    Args:
        experiment: The config.
        rows: Whose numbers.
        snapshots: The candidates of choices, and the points of curves.
    """

    def __init__(self, experiment: Experiment, *, rows: Rows, snapshots: Snapshots) -> None:
        self._experiment, self._rows, self._snapshots = experiment, rows, snapshots

    def __iter__(self) -> Iterator[Number]:
        """Yield all of them; some more than once."""
        for name in self._experiment.tables:
            yield from self.of_table(name)
            yield from self.of_curves(name)
            for row in self._rows.of(name):
                if isinstance(row.model, Selected):
                    yield from self.of_candidates(row.model)

    def of_table(self, name: str) -> Iterator[Number]:
        """Yield the numbers of a table's cells."""
        table = self._experiment.tables[name]
        metrics = dict.fromkeys(source.partition(".")[0] for source in table.columns.values())
        for row in self._rows.of(name):
            for seeds in table.seeds:
                for metric in metrics:
                    yield Number(model=row.model, sampler=row.sampler, seeds=seeds, metric=metric)

    def of_curves(self, name: str) -> Iterator[Number]:
        """Yield the numbers of a table's curves: each snapshot of each row whose run has several."""
        table = self._experiment.tables[name]
        if table.curves is None:
            return
        metric = table.columns[table.curves.column].partition(".")[0]
        for row in self._rows.trained(name):
            points = self._snapshots.candidates(row.model)
            for point in points if len(points) > 1 else ():
                yield Number(model=point, sampler=row.sampler, seeds=table.curves.seeds, metric=metric)

    def of_candidates(self, model: Model) -> Iterator[Number]:
        """Yield the numbers by which a model is chosen."""
        by = model.choice
        for candidate in self._snapshots.candidates(model):
            yield Number(model=candidate, sampler=by.sampler, seeds=by.seeds, metric=by.metric)
