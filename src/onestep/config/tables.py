"""Section `tables` of config.yaml: numbers that are measured and shown together, and those from the literature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from onestep.config.constraints import (
    Apply,
    Average,
    Constraint,
    Count,
    MetricValue,
    Name,
    Named,
    Policy,
    RunName,
    SeedBlock,
    Text,
    empty,
    frozen,
)
from onestep.config.run import OMIT_EMPTY


@dataclass(frozen=True, kw_only=True)
class PublishedNumber:
    """A number from the literature and its source; config.yaml may give the value alone."""

    value: float
    source: Text | None = None


def _with_source(value: Any) -> Any:
    return value if isinstance(value, Mapping) else {"value": value}


@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """A row of a table: a `run` or a `teacher` with a sampler, or another method's published numbers.

    A `run` may be a family of runs (`vary:`), whose mean and deviation the row shows; `name.*` makes one row of each
    run whose name matches.
    """

    run: RunName | None = None
    runs: tuple[RunName, ...] = field(default=(), metadata=OMIT_EMPTY)  # filled in where `run` is a family
    teacher: Name | None = None
    sampler: Name | None = None
    label: Text | None = None  # by default the name of the run or teacher
    dataset: Name | None = None  # that the images are compared with, in a table without `dataset`
    # Half-life in images of the run's EMA to use, or the relative standard deviation of one that follows from those of
    # `power`; by default the main one.
    ema: Average | None = None
    published: Named[Annotated[PublishedNumber, Apply(_with_source, when="before")]] = field(default_factory=empty)
    nfe: Count | None = None  # of another method, as published
    images: Text | None = None  # that another method was trained on, as its authors write it

    @property
    def is_measured(self) -> bool:
        """Whether the pipeline measures the row, as opposed to another method's published numbers."""
        return self.run is not None or self.teacher is not None

    @property
    def name(self) -> str | None:
        """`run/sampler` or `teacher/sampler`; None for another method's published numbers."""
        return f"{self.run or self.teacher}/{self.sampler}" if self.is_measured else None

    @property
    def members(self) -> tuple[str, ...]:
        """The runs that the row shows: those of a family, or its one run; none for a teacher."""
        return self.runs or (() if self.run is None else (self.run,))


@dataclass(frozen=True, kw_only=True)
class CurvesBlock:
    """A column over the images seen, for every row whose run has several snapshots."""

    column: Name
    seeds: SeedBlock


@dataclass(frozen=True, kw_only=True)
class RuleBlock:
    """A claim about a table: a number of a row against a bound or a multiple of that of another row.

    A row is named as its files are, `run/sampler` or `teacher/sampler`. The page states whether the claim holds.
    """

    row: Text
    column: Name
    at_most: float | None = None  # exactly one of the two: the bound or the factor
    at_least: float | None = None
    times: Text | None = None  # the other row; by default the bound is absolute


@dataclass(frozen=True, kw_only=True)
class TableBlock:
    """Numbers that are measured and shown together.

    The best of several noisy numbers is biased; `select_seeds` outside of `seeds` keeps this bias out of the table. The
    paper reports the lowest FID over snapshots, which is the default's way.
    """

    title: Text  # by default the table's name
    caption: Text | None = field(default=None, metadata=OMIT_EMPTY)
    dataset: Name | None = None  # that generated images are compared with; by default each row names its own
    # "first-last", both included, of one size; each block is measured as an independent sample.
    seeds: Annotated[tuple[SeedBlock, ...], Constraint(min_length=1)]
    select: Policy = "last"  # snapshot of each run: `last`, or the best number of a column, such as `best_fd`
    select_seeds: SeedBlock | None = None  # by default the first of `seeds`
    # In the cells: mean of the blocks with its deviation, the first block, or the best; the table's JSON has all.
    show: Literal["mean", "first", "best"] = "mean"
    columns: Annotated[Mapping[Name, MetricValue], Constraint(min_length=1), Apply(frozen)]
    rows: Annotated[tuple[RowBlock, ...], Constraint(min_length=1)]
    curves: CurvesBlock | None = None
    rule: RuleBlock | None = field(default=None, metadata=OMIT_EMPTY)

    @property
    def selected_by(self) -> str | None:
        """The column that selects snapshots; None for the last snapshot."""
        return None if self.select == "last" else self.select.removeprefix("best_")

    @property
    def selection_seeds(self) -> str:
        """The seed block of the selection."""
        return self.select_seeds or self.seeds[0]

    @property
    def drawn(self) -> str:
        """The column that charts show."""
        return next(iter(self.columns)) if self.curves is None else self.curves.column

    def dataset_of(self, row: RowBlock) -> str:
        """Return the dataset that a row is compared with."""
        dataset = row.dataset or self.dataset
        assert dataset is not None, row
        return dataset
