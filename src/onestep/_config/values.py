"""The frozen values a config becomes. Lengths are counted in images; a name is the key under which a thing stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.dataclasses import dataclass

_T = TypeVar("_T")


def _frozen(value: Any) -> Any:
    """Return a JSON value whose mappings and lists cannot change."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(each) for key, each in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


_NAME = r"^[a-z][a-z0-9_]*$"
_DIGEST = r"^[0-9a-f]{64}$"
_SEED_BLOCK = r"^(0|[1-9][0-9]*)-(0|[1-9][0-9]*)$"
_POLICY = r"^(last|best_[a-z][a-z0-9_]*)$"
_METRIC_VALUE = r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$"

EXPECTED_BY_PATTERN = MappingProxyType(
    {
        _NAME: "small letters, digits and _, first a letter",
        _DIGEST: "64 hexadecimal digits",
        _SEED_BLOCK: "first-last, such as 0-1999",
        _POLICY: "last, or best_ and a column, such as best_fd",
        _METRIC_VALUE: "metric.value, such as fd.frechet",
    }
)

Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Digest = Annotated[str, StringConstraints(pattern=_DIGEST)]
SeedBlock = Annotated[str, StringConstraints(pattern=_SEED_BLOCK)]
Policy = Annotated[str, StringConstraints(pattern=_POLICY)]
MetricValue = Annotated[str, StringConstraints(pattern=_METRIC_VALUE)]
Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Named = Annotated[Mapping[Name, _T], AfterValidator(_frozen)]
Options = Annotated[Mapping[str, Any], AfterValidator(_frozen)]

# In JSON mode "strict" takes a list for a tuple and a whole number for a number, and no text for either.
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Input:
    """A file or folder from outside. It has exactly one of `package`, `file`, `url` and `published`.

    Attributes:
        package: Distribution that ships the file (then `path`, `sha256` and `licence` are given too).
        path: The file inside the installed package.
        file: A path on this machine: a file, or a folder.
        url: An address: http, https or file.
        published: An entry of fetch/registry.yaml, which knows the rest.
        size: Bytes behind the `url`.
        sha256: Digest of the file; of a folder, that of its listing.
        licence: Under which terms it may be used.
    """

    package: Text | None = None
    path: Text | None = None
    file: Text | None = None
    url: Text | None = None
    published: Text | None = None
    size: Count | None = None
    sha256: Digest | None = None
    licence: Text | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Component:
    """A choice of a family folder with its options: a network, classifier, objective or sampler."""

    name: str
    options: Options


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Dataset:
    """A choice of data/.

    Attributes:
        input: What its `source` comes from.
        references: By metric, the input with published statistics or images that models of this dataset are compared
            with, in place of the dataset's own features.
    """

    name: str
    options: Options
    input: Name | None = None
    references: Named[Name] = Field(default_factory=_nothing)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Extractor:
    """A choice of features/; its weights are those of a classifier `run` or an `input`."""

    name: str
    options: Options
    run: Name | None = None
    input: Name | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Metric:
    """A choice of metrics/, on the vectors of one entry of the section `features`."""

    name: str
    options: Options
    features: Name


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Network:
    """A choice of networks/ and the preconditioning around it."""

    name: str
    options: Options
    preconditioning: str


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Discriminator:
    """A choice of discriminators/ that looks through entries of the section `backbones`.

    Attributes:
        class_embeddings: Entry of the section of that name with which a conditional one starts; by default, chance.
    """

    name: str
    options: Options
    backbones: tuple[Name, ...] = ()
    class_embeddings: Name | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Teacher:
    """A denoiser that runs start from: the last snapshot of a `run`, or an input that holds EDM's `pickle`.

    Attributes:
        run: A run of this config.
        pickle: An input in EDM's format.
        preconditioning: What stands around the pickle's network, `edm` where nothing is said: `d2o` for D2O's files.
    """

    run: Name | None = None
    pickle: Name | None = None
    preconditioning: Literal["edm", "d2o"] | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Backbone:
    """What a discriminator looks through: the last snapshot of a classifier's `run`, or a network of `timm`.

    Attributes:
        timm: What timm calls the network, with the tag of its weights: vgg16_bn.tv_in1k.
        input: The input that holds the weights of timm's network.
    """

    run: Name | None = None
    timm: Text | None = None
    input: Name | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ClassEmbeddings:
    """A table with a row a class: a published one, or the mean features of each class of a dataset.

    Attributes:
        input: The input that holds the published table.
        backbone: Whose last features are averaged, over the pixels and over the images of a class.
        dataset: Whose images.
        resolution: Size to which they are resized before the backbone; a discriminator's, so that both see the same.
    """

    input: Name | None = None
    backbone: Name | None = None
    dataset: Name | None = None
    resolution: Count | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Optimizer:
    """One role's optimizer and its constants, as published."""

    name: Literal["adam", "radam"] = "adam"
    lr: Annotated[float, Field(gt=0)]
    betas: Annotated[tuple[Beta, ...], Field(min_length=2, max_length=2)]
    eps: Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MovingAverage:
    """The averages that snapshots publish.

    Attributes:
        half_life: Images after which a weight counts half, in the main one.
        ramp_up: No half-life ever exceeds this share of the images seen; 0 is no limit.
        others: Half-lives of further averages, in images; each has its own file beside every snapshot.
    """

    half_life: Annotated[float, Field(gt=0)]
    ramp_up: Annotated[float, Field(ge=0)]
    others: tuple[Count, ...] = ()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Precision:
    """Number types of a training; sampling has its own. Penalties on gradients and optimizers stay in float32.

    Attributes:
        tf32: Whether CUDA devices may round the factors of float32 products to 10 bits. The reference does not.
        generator: Of the image path of the denoiser that is trained, whatever its teacher's was.
        discriminator: Of frozen features and the convolutions of heads.
    """

    tf32: bool = False
    generator: Literal["float32", "bfloat16"] = "float32"
    discriminator: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Compile:
    """Who carries the operations of a training out; numbers differ by rounding alone.

    Attributes:
        networks: torch.compile writes the kernels of generator and frozen features, but not for penalties on gradients.
            Costs minutes at the start.
        cuda_graphs: Records these kernels and replays them; needs `networks` and a CUDA device.
        fused_optimizer: One kernel a step; of adam alone.
        channels_last: The generator computes with channels innermost.
    """

    networks: bool = False
    cuda_graphs: bool = False
    fused_optimizer: bool = False
    channels_last: bool = False


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Run:
    """One training. It has exactly one of `network`, `teacher` and `classifier`.

    Attributes:
        dataset: What it learns from.
        conditional: Whether it sees labels.
        network: A denoiser from scratch.
        teacher: The denoiser it starts from, with `preconditioning` and `dropout` in place of the teacher's.
        classifier: A classifier from scratch.
        freeze: Parts of parameter names; what they match inside a denoiser's blocks is not trained.
        objective: What it trains for.
        discriminator: The opponent, where the objective wants one.
        optimizers: One for each role that the objective trains.
        ema: The average that snapshots publish.
        precision: Number types.
        compile: Who carries the operations out.
        batch: Images a step, over all processes.
        images: Images in all.
        snapshot_every: Images between snapshots.
        non_finite_limit: Share of gradient entries that may be not finite before the run stops.
        seed: Of weights, data order and noise.
    """

    dataset: Name
    conditional: bool
    network: Network | None = None
    teacher: Name | None = None
    classifier: Component | None = None
    preconditioning: Literal["edm", "d2o"] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    freeze: tuple[Text, ...] = ()
    objective: Component
    discriminator: Discriminator | None = None
    optimizers: Named[Optimizer]
    ema: MovingAverage
    precision: Precision = Precision()
    compile: Compile = Compile()
    batch: Count
    images: Count
    snapshot_every: Count
    non_finite_limit: Share
    seed: Annotated[int, Field(ge=0)]

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Counts of images that name the snapshots; each is taken at the first step that reaches its count."""
        return (*range(self.snapshot_every, self.images, self.snapshot_every), self.images)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Published:
    """A number from the literature, and where it stands; a config may give the number alone."""

    value: float
    source: Text | None = None


def _alone(value: Any) -> Any:
    """Return a number that stands alone as one without a source."""
    return value if isinstance(value, Mapping) else {"value": value}


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Row:
    """A row of a table: a `run` or a `teacher` through a sampler, or another method's published numbers.

    Attributes:
        label: What readers call it, where that is not the run's name.
        dataset: What its images are compared with, in a table that names none.
        ema: Half-life in images of the run's average that is shown; None for its main one.
        published: Numbers from the literature by column.
        nfe: Network evaluations of another method, as published.
        images: Images that another method trained on, in the words of its authors.
    """

    run: Name | None = None
    teacher: Name | None = None
    sampler: Name | None = None
    label: Text | None = None
    dataset: Name | None = None
    ema: Count | None = None
    published: Named[Annotated[Published, BeforeValidator(_alone)]] = Field(default_factory=_nothing)
    nfe: Count | None = None
    images: Text | None = None

    @property
    def is_measured(self) -> bool:
        """Whether this pipeline measures it."""
        return self.run is not None or self.teacher is not None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Curves:
    """A column over the images seen, of every row that trains with more than one snapshot."""

    column: Name
    seeds: SeedBlock


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Table:
    """What is measured and shown together.

    Attributes:
        dataset: What generated images are compared with; None where each row names its own.
        seeds: Blocks "first-last", both included, of one size; each is measured by itself.
        select: Which snapshot of a run stands in the table: its last, or the one with the best number of a column.
        select_seeds: The block by which the best is chosen; None for the first of `seeds`. The best of several noisy
            numbers flatters: seeds other than those of `seeds` keep that bias out of the table. The paper reports the
            lowest FID over snapshots, which is the default's way.
        show: What stands in the cells of the blocks' numbers: their mean with its deviation, that of the first block,
            or the best of them; the table's JSON has all.
        columns: "metric.value" by column.
    """

    title: Text
    dataset: Name | None = None
    seeds: Annotated[tuple[SeedBlock, ...], Field(min_length=1)]
    select: Policy = "last"
    select_seeds: SeedBlock | None = None
    show: Literal["mean", "first", "best"] = "mean"
    columns: Annotated[Named[MetricValue], Field(min_length=1)]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    curves: Curves | None = None

    @property
    def selected_by(self) -> str | None:
        """The column by which snapshots are chosen; None where the last one stands."""
        return None if self.select == "last" else self.select.removeprefix("best_")

    @property
    def selection_seeds(self) -> str:
        """The block of seeds by which they are chosen."""
        return self.select_seeds or self.seeds[0]

    @property
    def drawn(self) -> str:
        """The column that charts show and the page's claim is judged by."""
        return next(iter(self.columns)) if self.curves is None else self.curves.column

    def dataset_of(self, row: Row) -> str:
        """Return what a row is compared with."""
        dataset = row.dataset or self.dataset
        assert dataset is not None, row
        return dataset


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Storage:
    """What of the way from generated images to numbers stays on disk; grids of a few images always do.

    Attributes:
        images: `none` passes each block of images through the feature networks while it is generated, in one job.
        features: `none` deletes the features of generated images once everything is measured that looks at them.
    """

    images: Literal["keep", "none"] = "keep"
    features: Literal["keep", "none"] = "keep"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LaunchException:
    """What one run's job asks for in place of what `launch` says of all."""

    nodes: Count | None = None
    processes_per_node: Count | None = None
    cpus_per_process: Count | None = None
    memory_gib: Count | None = None
    gpu_type: Text | None = None
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    hours: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Launch:
    """Where trainings run, and what a site wants to be told. Nothing here is science: an edit trains nothing anew.

    Attributes:
        backend: A job of SLURM, or processes of this machine; `auto` is SLURM where there is an `sbatch`.
        nodes: Nodes of a job.
        processes_per_node: Processes of a run on each node, one a GPU.
        cpus_per_process: Processor cores of each, and of every other job that samples, looks at images or measures.
        memory_gib: Memory of a node; None is what the site gives.
        device: What each process of a job must find: a GPU of its own, or (`cpu`) nothing, and it looks for none.
        gpus: How GPUs are asked for: `--gres=gpu:8`, `--gpus-per-node=8`, or not at all.
        gpu_type: Such as a100.
        hours: Time limit; a job that reaches it goes on in another life.
        signal_seconds: How long before it the run is told: time to end a step and to write a state.
        state_seconds: Seconds between two states, which is what a dying node costs.
        requeues: How often a job may put itself back into the queue; 0 where a site forbids it: it is submitted anew.
        resubmissions: How often that may happen, and to a job that SLURM lost, without the run getting on in between.
        poll_seconds: Seconds between two looks at the job.
        grace_seconds: How long SLURM may take to put back a job whose node failed or which was preempted.
        on_interrupt: What Ctrl-C does to the job; other signals always leave it alone.
        on_change: What happens to the active job of a run whose config has changed.
        setup: Lines of shell before the processes start, such as `module load cuda`.
        python: Command that starts Python in the job; None is the one that runs Snakemake.
        sbatch: Further options of sbatch.
        runs: Exceptions, by run.
    """

    backend: Literal["auto", "slurm", "local"] = "auto"
    nodes: Count = 1
    processes_per_node: Count = 1
    cpus_per_process: Count = 1
    memory_gib: Count | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    gpus: Literal["gres", "gpus", "none"] = "gres"
    gpu_type: Text | None = None
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    hours: Positive = 24.0
    signal_seconds: Count = 300
    state_seconds: Positive = 300.0
    requeues: Annotated[int, Field(ge=0)] = 100
    resubmissions: Annotated[int, Field(ge=0)] = 3
    poll_seconds: Positive = 30.0
    grace_seconds: Positive = 180.0
    on_interrupt: Literal["cancel", "detach"] = "cancel"
    on_change: Literal["leave", "cancel"] = "leave"
    setup: tuple[Text, ...] = ()
    python: Text | None = None
    sbatch: Options = Field(default_factory=_nothing)
    runs: Named[LaunchException] = Field(default_factory=_nothing)

    def of(self, run: str) -> Launch:
        """Return what holds for one run."""
        exception = self.runs.get(run)
        said = {} if exception is None else vars(exception)
        return replace(self, **{key: value for key, value in said.items() if value is not None}, runs={})

    @property
    def processes(self) -> int:
        """Processes of a run, on all nodes."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Rerun:
    """What a change leads to, where that is a matter of taste."""

    training_on_code_change: bool = False


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Experiment:
    """A whole config, checked: every name in it exists, and every option that has a default is filled in.

    Attributes:
        mirrors: What addresses begin with, and what they may begin with instead; a mirror is tried first.
        container: The image in which rules run where Snakemake is told to use one; trainings have `launch.python`.
    """

    inputs: Named[Input] = Field(default_factory=_nothing)
    mirrors: Annotated[Mapping[Text, Text], AfterValidator(_frozen)] = Field(default_factory=_nothing)
    datasets: Named[Dataset] = Field(default_factory=_nothing)
    teachers: Named[Teacher] = Field(default_factory=_nothing)
    backbones: Named[Backbone] = Field(default_factory=_nothing)
    class_embeddings: Named[ClassEmbeddings] = Field(default_factory=_nothing)
    features: Named[Extractor] = Field(default_factory=_nothing)
    runs: Named[Run] = Field(default_factory=_nothing)
    samplers: Named[Component] = Field(default_factory=_nothing)
    metrics: Named[Metric] = Field(default_factory=_nothing)
    tables: Named[Table] = Field(default_factory=_nothing)
    launch: Launch = Field(default_factory=Launch)
    container: Text | None = None
    storage: Storage = Storage()
    rerun: Rerun = Rerun()
