"""The sections of config.yaml as frozen values. Lengths are counted in images; names are keys of their section.

A change of the sections `launch`, `watch`, `storage` and `rerun` never triggers training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from onestep.config.constraints import (
    STRICT,
    Apply,
    Classes,
    Constraint,
    Count,
    Digest,
    GpuType,
    Name,
    Named,
    Natural,
    Options,
    RunName,
    Seconds,
    SeedBlock,
    SiteName,
    SmallCount,
    Text,
    Width,
    empty,
    frozen,
    least,
)
from onestep.config.laws import Law
from onestep.config.run import OMIT_EMPTY, CodecBlock, Component, Run
from onestep.config.sbatch import SbatchOption, SbatchValue, cluster_of, given, one_cluster
from onestep.config.tables import TableBlock


@dataclass(frozen=True, kw_only=True)
class InputBlock:
    """A file or folder from outside. It has exactly one of `package`, `file`, `url` and `published`."""

    package: Text | None = None  # distribution that contains the file; needs `path`, `sha256` and `licence`
    path: Text | None = None  # the file inside the installed package
    file: Text | None = None  # a path on this machine: a file, or a folder
    url: Text | None = None  # http, https or file
    published: Text | None = None  # an entry of fetch/registry.yaml, with addresses and digest
    size: Count | None = None  # bytes behind the `url`
    sha256: Digest | None = None  # of the file; of a folder, that of its listing
    licence: Text | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetBlock:
    """A choice of data/; `name` and `options` as in `Component`, here and below."""

    name: str
    options: Options = field(default_factory=empty)
    input: Name | None = None  # what the reader reads, its `source`
    dataset: Name | None = field(default=None, metadata=OMIT_EMPTY)  # the same, of a part of another dataset
    classes: Classes | None = None  # that labels number, where its images lack the last of them; by default seen ones
    # By metric, the input with published statistics or images, in place of the dataset's own features.
    references: Named[Name] = field(default_factory=empty)


@dataclass(frozen=True, kw_only=True)
class ExtractorBlock:
    """A choice of features/, with the weights of a classifier's `run`, its last snapshot, or of an `input`."""

    name: str
    options: Options = field(default_factory=empty)
    run: RunName | None = None
    input: Name | None = None


@dataclass(frozen=True, kw_only=True)
class AgainstBlock:
    """Generated images in the place of real ones: those of a `run`, of its last snapshot, or of a `teacher`.

    Of a family of runs it is the member with the training seed of the measured run, else the first. A member itself is
    compared with the next one, a control; given `seeds`, with itself, a floor.
    """

    run: RunName | None = None
    runs: tuple[RunName, ...] = field(default=(), metadata=OMIT_EMPTY)  # filled in where `run` is a family
    teacher: Name | None = None
    sampler: Name
    seeds: SeedBlock | None = None  # by default those of the measured images: the same noise

    @property
    def members(self) -> tuple[RunName, ...]:
        """The runs of a family, or the one run; none for a teacher."""
        return self.runs or (() if self.run is None else (self.run,))


@dataclass(frozen=True, kw_only=True)
class MetricBlock:
    """A choice of metrics/."""

    name: str
    options: Options = field(default_factory=empty)
    features: Name | None = None  # entry of `features` that computes its inputs; none for a metric on pixels
    networks: tuple[Name, ...] = field(default=(), metadata=OMIT_EMPTY)  # the same, of a metric of several
    held_out: Name | None = field(default=None, metadata=OMIT_EMPTY)  # dataset of real images that no model has seen
    against: AgainstBlock | None = None  # what it compares with in the place of real images

    @property
    def extractors(self) -> tuple[Name, ...]:
        """The entries of `features` that compute its inputs."""
        return self.networks or (() if self.features is None else (self.features,))


@dataclass(frozen=True, kw_only=True)
class TeacherBlock:
    """A denoiser that runs start from: the last snapshot of a `run`, or an input with its `weights`."""

    run: RunName | None = None
    # An input: a pickle of EDM's format (.pkl), a snapshot or an exported generator (.safetensors), a state dict of DiT
    # or SiT (.pt, .pth, .bin, .safetensors), or the folder of a UNet2DModel or a DiT of diffusers.
    weights: Name | None = None
    pickle: Name | None = None  # the former name of `weights`
    # The law of a pickle's network: `edm`, the default, or `d2o` for released D2O checkpoints; of a folder, `ddpm`; of
    # a state dict, `ddpm` (DiT) or `flow` (SiT), without a default.
    # That of a snapshot is in its file; its runs have another one than `edm` and `d2o` where it is stated here.
    preconditioning: Law | None = None
    codec: CodecBlock | None = None  # of weights from outside whose images are latents; runs have their own
    # Of weights from outside: a DiT or SiT with classes is its network for no class, for runs without classes.
    without_classes: bool = field(default=False, metadata=OMIT_EMPTY)

    @property
    def input(self) -> Name | None:
        """The input with its weights; None for that of a run."""
        return self.weights or self.pickle


@dataclass(frozen=True, kw_only=True)
class BackboneBlock:
    """A frozen network of a discriminator, a distance or a loss: the last snapshot of a classifier's `run`, or of timm.

    With `input` alone, it is tensors by name, such as the linear layers of LPIPS.
    """

    run: RunName | None = None
    timm: Text | None = None  # name of the network in timm with the tag of its weights: vgg16_bn.tv_in1k
    input: Name | None = None  # the weights for `timm` or `extractor`, or the tensors
    # The network of FID, for losses on vectors alone.
    extractor: Literal["inception"] | None = field(default=None, metadata=OMIT_EMPTY)

    @property
    def is_tensors(self) -> bool:
        """Whether it is tensors without a network."""
        return self.run is None and self.timm is None and self.extractor is None


@dataclass(frozen=True, kw_only=True)
class ClassEmbeddingsBlock:
    """A table with one row per class: a published `input`, or the mean features of each class of a `dataset`."""

    input: Name | None = None
    backbone: Name | None = None  # its last features are averaged over pixels and over the images of a class
    dataset: Name | None = None
    resolution: Width | None = None  # pixels, to which images are resized before the backbone; the discriminator's


@dataclass(frozen=True, kw_only=True)
class StudyBlock:
    """A choice of studies/."""

    name: str
    options: Options = field(default_factory=empty)
    # Made only when `results/studies/{study}.svg` is a target, as are the runs that it alone observes.
    on_request: bool = field(default=False, metadata=OMIT_EMPTY)


Gibibytes = Annotated[int, Constraint(gt=0, le=100_000)]
WholeSeconds = Annotated[int, Constraint(gt=0, le=1_000_000)]
Repeats = Annotated[Natural, Constraint(le=1_000_000)]
Hours = Annotated[float, Constraint(gt=0, le=8_784), least(1 / 3600)]  # of a job, at most a year


@dataclass(frozen=True, kw_only=True)
class LaunchException:
    """Resources of one run's job, in place of those of `Launch`."""

    nodes: SmallCount | None = None
    processes_per_node: SmallCount | None = None
    cpus_per_process: SmallCount | None = None
    memory_gib: Gibibytes | None = None
    gpu_type: GpuType | None = None
    gpu_memory_gib: Gibibytes | None = None
    partition: SiteName | None = None
    account: SiteName | None = None
    qos: SiteName | None = None
    constraint: SiteName | None = None
    hours: Hours | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Execution settings for training jobs."""

    backend: Literal["auto", "slurm", "local"] = "auto"  # `local`: this machine; `auto`: SLURM if `sbatch` exists
    nodes: SmallCount = 1
    processes_per_node: SmallCount = 1  # one for each GPU
    cpus_per_process: SmallCount = 1  # cores, also of every job that samples, extracts or measures
    memory_gib: Gibibytes | None = None  # of a node; by default the site's default
    device: Literal["cuda", "cpu"] = "cuda"  # `cuda`: each process of a job needs a GPU of its own
    gpus: Literal["gres", "gpus", "none"] = "gres"  # request as `--gres=gpu:8`, `--gpus-per-node=8`, or not at all
    gpu_type: GpuType | None = None  # such as a100
    # Of one GPU. Where it is given, a training that surely needs more is refused before its job; by default that of the
    # GPU of this machine, for a local training.
    gpu_memory_gib: Gibibytes | None = None
    partition: SiteName | None = None
    account: SiteName | None = None
    qos: SiteName | None = None
    constraint: SiteName | None = None  # node features that SLURM has to select
    hours: Hours = 24.0  # time limit; a job that reaches it is requeued and resumes
    signal_seconds: WholeSeconds = 300  # from the signal to finish a step and write a state to the time limit
    state_seconds: Seconds = 300.0  # between two states: the most that a failing node costs
    requeues: Repeats = 100  # of a job by itself; 0 where a site forbids them: a new job is submitted instead
    resubmissions: Repeats = 3  # new jobs after a requeue limit or a lost job, without progress in between
    poll_seconds: Seconds = 30.0  # between two queries of the job's state
    grace_seconds: Seconds = 180.0  # that SLURM may take to requeue a job after a node failure or preemption
    on_interrupt: Literal["cancel", "detach"] = "cancel"  # what Ctrl-C does; other signals never cancel the job
    on_change: Literal["leave", "cancel"] = "leave"  # the active job of a run whose config has changed
    setup: tuple[Text, ...] = ()  # shell lines before the processes start, such as `module load cuda`
    python: Text | None = None  # command that starts Python in the job; by default the interpreter of Snakemake
    # Further options of sbatch, of those that leave the launcher its means; without those that are null or false.
    sbatch: Annotated[
        Mapping[SbatchOption, SbatchValue], Apply(given, when="before"), Apply(one_cluster), Apply(frozen)
    ] = field(default_factory=empty)
    # Exceptions, by run or by family of runs.
    runs: Annotated[Mapping[RunName, LaunchException], Apply(frozen)] = field(default_factory=empty)

    def of(self, run: str) -> Launch:
        """Return the settings of one run, its exception or that of its family applied."""
        exception = self.runs.get(run, self.runs.get(run.partition(".")[0]))
        given = {} if exception is None else vars(exception)
        return replace(self, **{key: value for key, value in given.items() if value is not None}, runs=empty())

    @property
    def cluster(self) -> str | None:
        """The SLURM cluster of the jobs; None for that of this machine."""
        return cluster_of(self.sbatch)

    @property
    def processes(self) -> int:
        """Processes of a run, on all nodes."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is seen of a training while it runs, beside the log, TensorBoard's event file and grids of images."""

    # By metric of features, the number of images of each snapshot that are measured in the training's own job.
    numbers: Named[Count] = field(default_factory=empty)
    wandb: Text | None = None  # project of Weights & Biases that gets the records; needs the package wandb


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Which intermediate files stay on disk; grids of a few images always do."""

    images: Literal["keep", "none"] = "keep"  # `none`: one job generates and extracts features
    features: Literal["keep", "none"] = "keep"  # `none`: deleted after all numbers of generated images
    states: Literal["keep", "none"] = "keep"  # `none`: no state of finished runs, which then cannot continue


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """What a change of the training code reruns."""

    training_on_code_change: bool = False  # train again; by default the table marks the run


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A checked config: every name in it exists, and every option that has a default is filled in.

    In the file a run may have `base:`, another run whose block it changes, and `vary:`, which makes a family of runs;
    both are resolved here, so that each entry of `runs` is one training.
    """

    # It holds for the dataclasses inside, too.
    __pydantic_config__: ClassVar = STRICT

    title: Text | None = field(default=None, metadata=OMIT_EMPTY)  # of the results page; by default its datasets
    inputs: Named[InputBlock] = field(default_factory=empty)
    # Prefixes of addresses and their replacements, which are tried first.
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
    studies: Named[StudyBlock] = field(default_factory=empty, metadata=OMIT_EMPTY)
    launch: Launch = field(default_factory=Launch)
    watch: Watch = field(default_factory=Watch)
    container: Text | None = None  # image of the rules' software; trainings have `launch.python`
    storage: Storage = Storage()
    rerun: Rerun = Rerun()
