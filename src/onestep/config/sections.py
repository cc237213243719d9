"""The sections of config.yaml as frozen values. Lengths are counted in images; names are keys of their section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from onestep.config.constraints import (
    STRICT,
    Apply,
    Constraint,
    Count,
    Digest,
    MetricValue,
    Name,
    Named,
    Options,
    Policy,
    RunName,
    SeedBlock,
    Text,
    empty,
    frozen,
)
from onestep.config.launch import Launch, Rerun, Storage
from onestep.config.run import OMIT_EMPTY, Component, Run


@dataclass(frozen=True, kw_only=True)
class InputBlock:
    """A file or folder from outside. It has exactly one of `package`, `file`, `url` and `published`.

    Attributes:
        package: Distribution that contains the file; needs `path`, `sha256` and `licence`.
        path: The file inside the installed package.
        file: A path on this machine: a file, or a folder.
        url: An address: http, https or file.
        published: An entry of fetch/registry.yaml, with addresses and digest.
        size: Bytes behind the `url`.
        sha256: SHA-256 of the file; of a folder, that of its listing.
        licence: Terms of use.
    """

    package: Text | None = None
    path: Text | None = None
    file: Text | None = None
    url: Text | None = None
    published: Text | None = None
    size: Count | None = None
    sha256: Digest | None = None
    licence: Text | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetBlock:
    """A choice of data/; `name` and `options` as in `Component`, here and below.

    Attributes:
        input: The input that the reader reads (its `source`).
        references: By metric, the input with published statistics or images, in place of the dataset's own features.
    """

    name: str
    options: Options = field(default_factory=empty)
    input: Name | None = None
    references: Named[Name] = field(default_factory=empty)


@dataclass(frozen=True, kw_only=True)
class ExtractorBlock:
    """A choice of features/, with the weights of a classifier's `run`, its last snapshot, or of an `input`."""

    name: str
    options: Options = field(default_factory=empty)
    run: RunName | None = None
    input: Name | None = None


@dataclass(frozen=True, kw_only=True)
class MetricBlock:
    """A choice of metrics/.

    Attributes:
        features: Entry of the section `features` that computes its inputs; none for a metric on pixels.
    """

    name: str
    options: Options = field(default_factory=empty)
    features: Name | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherBlock:
    """A denoiser that runs start from: the last snapshot of a `run`, or an input in EDM's format (`pickle`).

    Attributes:
        preconditioning: The law of the pickle's network: `edm`, the default, or `d2o` for released D2O checkpoints.
    """

    run: RunName | None = None
    pickle: Name | None = None
    preconditioning: Literal["edm", "d2o"] | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneBlock:
    """A frozen network of a discriminator: the last snapshot of a classifier's `run`, or `input`, weights for `timm`.

    Attributes:
        timm: Name of the network in timm with the tag of its weights: vgg16_bn.tv_in1k.
    """

    run: RunName | None = None
    timm: Text | None = None
    input: Name | None = None


@dataclass(frozen=True, kw_only=True)
class ClassEmbeddingsBlock:
    """A table with one row per class: a published `input`, or the mean features of each class of a `dataset`.

    Attributes:
        backbone: The backbone whose last features are averaged over pixels and over the images of a class.
        resolution: Size in pixels to which images are resized before the backbone; that of the discriminator.
    """

    input: Name | None = None
    backbone: Name | None = None
    dataset: Name | None = None
    resolution: Count | None = None


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

    Attributes:
        run: A run, or a family of runs (`vary:`), whose mean and deviation the row shows. `name.*` makes one row of
            each run whose name matches.
        runs: The runs that are averaged; filled in where `run` is a family.
        label: The row's name; by default the run's or the teacher's.
        dataset: Entry of `datasets` that the images are compared with, in a table without `dataset`.
        ema: Half-life in images of the run's EMA to use; by default the main one.
        published: Numbers from the literature, by column.
        nfe: NFE of another method, as published.
        images: Images that another method was trained on, as its authors write it.
    """

    run: RunName | None = None
    runs: tuple[RunName, ...] = field(default=(), metadata=OMIT_EMPTY)
    teacher: Name | None = None
    sampler: Name | None = None
    label: Text | None = None
    dataset: Name | None = None
    ema: Count | None = None
    published: Named[Annotated[PublishedNumber, Apply(_with_source, when="before")]] = field(default_factory=empty)
    nfe: Count | None = None
    images: Text | None = None

    @property
    def is_measured(self) -> bool:
        """Whether the pipeline measures the row, as opposed to another method's published numbers."""
        return self.run is not None or self.teacher is not None

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
class TableBlock:
    """Numbers that are measured and shown together.

    Attributes:
        caption: Text above the rows on the page and in the table's files.
        dataset: Entry of `datasets` that generated images are compared with; by default each row names its own.
        seeds: Seed blocks "first-last", both included, of one size; each is measured as an independent sample.
        select: Snapshot of each run: `last`, or `best_` and a column for the best number of that column.
        select_seeds: Seed block of the selection; by default the first of `seeds`. The best of several noisy numbers is
            biased; a block outside of `seeds` keeps this bias out of the table. The paper reports the lowest FID over
            snapshots, which is the default's way.
        show: Number in the cells: `mean` of the blocks with its deviation, that of the `first` block, or the `best`
            of them. The table's JSON has all.
        columns: "metric.value" by column.
    """

    title: Text
    caption: Text | None = field(default=None, metadata=OMIT_EMPTY)
    dataset: Name | None = None
    seeds: Annotated[tuple[SeedBlock, ...], Constraint(min_length=1)]
    select: Policy = "last"
    select_seeds: SeedBlock | None = None
    show: Literal["mean", "first", "best"] = "mean"
    columns: Annotated[Mapping[Name, MetricValue], Constraint(min_length=1), Apply(frozen)]
    rows: Annotated[tuple[RowBlock, ...], Constraint(min_length=1)]
    curves: CurvesBlock | None = None

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


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A checked config: every name in it exists, and every option that has a default is filled in.

    Attributes:
        mirrors: Prefixes of addresses and their replacements, which are tried first.
        runs: Trainings. A run may have `base:`, another run whose block it changes, and `vary:`, which makes a family
            of runs; both are resolved here, so that each entry is one training.
        samplers: Choices of sampling/.
        studies: Choices of studies/.
        container: Container image of the rules, for Snakemake's software deployment; trainings have `launch.python`.
    """

    # It holds for the dataclasses inside, too.
    __pydantic_config__: ClassVar = STRICT

    inputs: Named[InputBlock] = field(default_factory=empty)
    mirrors: Annotated[Mapping[Text, Text], Apply(frozen)] = field(default_factory=empty)
    datasets: Named[DatasetBlock] = field(default_factory=empty)
    teachers: Named[TeacherBlock] = field(default_factory=empty)
    backbones: Named[BackboneBlock] = field(default_factory=empty)
    class_embeddings: Named[ClassEmbeddingsBlock] = field(default_factory=empty)
    features: Named[ExtractorBlock] = field(default_factory=empty)
    runs: Annotated[Mapping[RunName, Run], Apply(frozen)] = field(default_factory=empty)
    samplers: Named[Component] = field(default_factory=empty)
    metrics: Named[MetricBlock] = field(default_factory=empty)
    tables: Named[TableBlock] = field(default_factory=empty)
    studies: Named[Component] = field(default_factory=empty, metadata=OMIT_EMPTY)
    launch: Launch = field(default_factory=Launch)
    container: Text | None = None
    storage: Storage = Storage()
    rerun: Rerun = Rerun()
