"""One training as frozen values: an entry of `runs:` in config.yaml, and run.yaml, its form with all defaults.

Standard dataclasses only: training reads run.yaml without pydantic. `onestep.config.read_experiment` checks config.yaml
against the same dataclasses. Lengths are counted in images.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from onestep.config.constraints import (
    Constraint,
    Count,
    Images,
    Name,
    Named,
    Natural,
    NotNegative,
    Options,
    Positive,
    RelativeStd,
    Seed,
    Share,
    ShareBelowOne,
    Text,
    below,
    empty,
    frozen,
)
from onestep.config.laws import Law
from onestep.config.starts import Initialisation, PairsBlock
from onestep.config.subset import Subset

# Metadata of fields that documents leave out where they are empty.
OMIT_EMPTY: Mapping[str, bool] = types.MappingProxyType({"omit_empty": True})


@dataclass(frozen=True, kw_only=True)
class Component:
    """A choice of a family with its options: `{name: d2o, sigma: 80.0, ...}`."""

    name: str  # a file of the family's folder, `my_module:MyClass`, or an entry point of the group `onestep.FAMILY`
    options: Options = field(default_factory=empty)  # keyword arguments of the class; in YAML beside `name`


@dataclass(frozen=True, kw_only=True)
class NetworkBlock:
    """A denoiser from scratch: a choice of networks/; the dataset gives its image size, channels and classes."""

    name: str
    options: Options = field(default_factory=empty)
    preconditioning: str = "edm"  # the law around the network (networks/_laws.py): `edm`, `d2o`, `ddpm` or `flow`


@dataclass(frozen=True, kw_only=True)
class DiscriminatorBlock:
    """A choice of discriminators/; `name` and `options` as in `Component`."""

    name: str
    options: Options = field(default_factory=empty)
    backbones: tuple[Name, ...] = ()  # entries of `backbones`, whose frozen features it classifies
    class_embeddings: Name | None = None  # entry of `class_embeddings` that initializes its own; by default random


@dataclass(frozen=True, kw_only=True)
class CodecBlock:
    """A choice of autoencoders/, the map between pixels and the space of the network."""

    name: str
    options: Options = field(default_factory=empty)
    input: Name | None = None  # the input that holds its weights, for codecs that have some


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A factor on the learning rate, as a function of the images seen.

    `cosine` goes from 1 at the end of the warm-up to `final` at the end of the run; `inverse_sqrt` is
    1 / sqrt(max(images / decay_from, 1)) (EDM2, arXiv:2312.02696).
    """

    name: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    warmup: Natural = 0  # images over which the factor rises linearly from 0; 0 is no warm-up
    final: Share = 0.0
    decay_from: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer of one role."""

    name: Literal["adam", "adamw", "radam"] = "adam"
    lr: Annotated[Positive, Constraint(le=100)]
    # Those of Adam (arXiv:1412.6980, section 2), unless the objective publishes other betas.
    betas: Annotated[tuple[ShareBelowOne, ...], Constraint(min_length=2, max_length=2)] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative | None = None  # decoupled for `adamw`, an L2 penalty for the others
    clip_norm: Positive | None = None  # largest norm of the role's gradient; larger ones are scaled down
    schedule: Schedule | None = None  # factor on `lr`; by default 1


@dataclass(frozen=True, kw_only=True)
class Ema:
    """EMA of the weights, which snapshots publish; each half-life is in images."""

    half_life: Images = 500_000.0  # of EDM's networks up to 64x64 (arXiv:2206.00364, appendix F.1)
    ramp_up: NotNegative = 0.05  # largest half-life as a share of the images seen; 0 is no limit (EDM's training loop)
    others: tuple[Count, ...] = ()  # half-life of each further EMA, which has its own file beside every snapshot
    power: tuple[RelativeStd, ...] = field(default=(), metadata=OMIT_EMPTY)  # of averages with power-function profiles


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number types of a training. R1 penalties and optimizers compute in float32; samplers have their own.

    bfloat16 is for CUDA devices. On a CPU a training computes in float32 instead, as in the reference.
    """

    tf32: bool = False  # TF32 in float32 products on CUDA devices; the reference does without
    generator: Literal["float32", "bfloat16"] = "float32"  # the generator's image path, and a ratio network's
    discriminator: Literal["float32", "bfloat16"] = "float32"  # frozen features and the heads' convolutions


@dataclass(frozen=True, kw_only=True)
class Compile:
    """Execution of a training; numbers differ by rounding alone."""

    networks: bool = False  # compile generator and frozen features, but not R1 penalties; costs minutes
    cuda_graphs: bool = False  # record the compiled kernels as CUDA graphs; needs `networks` and a CUDA device
    fused_optimizer: bool = False  # torch's fused optimizer, which `radam` does not have
    channels_last: bool = False  # store the generator's images with channels innermost
    # Use only algorithms that give the same bytes each time; slower on CUDA devices. On a CPU all are.
    deterministic: bool = field(default=False, metadata=OMIT_EMPTY)


FAST = (
    Precision(tf32=True, generator="bfloat16", discriminator="bfloat16"),
    Compile(networks=True, cuda_graphs=True, fused_optimizer=True),
)
"""What `fast: true` means, where a run has what an option is about. The layout of images stays."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training. It has exactly one of `network`, `teacher` and `classifier`."""

    dataset: Name
    subset: Subset | None = None  # by default the run trains on all images of the dataset
    conditional: bool  # whether the networks receive the images' classes; by default true for a classifier
    network: NetworkBlock | None = None
    teacher: Name | None = None  # entry of `teachers`, whose weights initialize the generator
    classifier: Component | None = None
    # With a teacher only, in place of the teacher's: the law, by default that of the objective (`d2o` for D2O), or the
    # teacher's where that is `ddpm` or `flow`; and the dropout, by default 0, that of the released training script.
    preconditioning: Law | None = None
    dropout: ShareBelowOne | None = None
    init: Initialisation | None = None  # what the generator starts from in place of the teacher's or of fresh weights
    pairs: PairsBlock | None = None  # of noise and images, for objectives that learn from them
    codec: CodecBlock | None = None  # by default the identity
    freeze: tuple[Text, ...] = ()  # freeze levels of the network's file, or patterns of parameter names
    freeze_seed: Seed | None = None  # freezes as many parameters, of tensors drawn with this seed, as a control
    objective: Component
    discriminator: DiscriminatorBlock | None = None
    networks: Named[Component] = field(default_factory=empty, metadata=OMIT_EMPTY)  # by role, from scratch
    optimizers: Named[Optimizer]  # of each role that the objective trains
    ema: Ema = Ema()
    # True sets options of `precision` and `compile` as in `FAST`, whatever they are in the run: another arithmetic, not
    # measured on a GPU, which needs a CUDA device. Tables mark its rows.
    fast: bool = field(default=False, metadata=OMIT_EMPTY)
    precision: Precision = Precision()
    compile: Compile = Compile()
    batch: Count  # images per step, over all ranks
    # Most images of a rank that pass through the networks at once; by default its whole share of the batch. Gradients
    # accumulate. Batch norms of discriminators then have the statistics of a micro-batch, as those of the paper have
    # the ones of a GPU: 64 on one GPU trains like a batch of 256 on four.
    micro_batch: Count | None = None
    # Compute the activations of blocks and of frozen feature networks again in the backward pass: less memory, about a
    # third more work in them, the same numbers to the bit. Not part of the run hash.
    recompute: bool = field(default=False, metadata=OMIT_EMPTY)
    # Give each process a part of all weights of denoisers, their gradients, moments and averages (FSDP2), for networks
    # that do not fit one GPU; the same up to rounding. Without effect on one process. Not part of the run hash.
    shard: bool = field(default=False, metadata=OMIT_EMPTY)
    # Store frozen kernels and matrices of denoisers in bfloat16: those of a frozen teacher, and of what `freeze` names.
    # Half their memory; they are rounded, so it is part of the run hash. By default float32.
    frozen_precision: Literal["bfloat16"] | None = None
    images: Count
    snapshot_every: Count  # images; by default one snapshot at the end
    # Counts of images at whose first step a snapshot is taken, 0 before it: those of the config, to which reading it
    # adds the multiples of `snapshot_every` and the end.
    snapshots: tuple[Natural, ...] = ()
    # Share of a gradient's entries that may be NaN or infinite; above it the run stops. Ours: the scripts of EDM and of
    # D2O replace them without a limit.
    non_finite_limit: Annotated[Share, below(1)] = 0.01
    seed: Seed = 0  # of weights, data order and noise


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """The content of run.yaml: a run with its name (key `run` of the file), and what it needs of other sections."""

    name: str
    run: Run
    timm: Mapping[str, str] = field(default_factory=empty)  # names in timm of those of its backbones that timm has
    extractors: Mapping[str, str] = field(default_factory=empty)  # choices of features/ among its backbones
    classes: int | None = None  # of its dataset, where the config gives them; else those that labels name
    snapshots: tuple[int, ...]  # counts of images at which snapshots are published


def snapshot_counts(*, images: int, every: int, stated: Iterable[int] = ()) -> tuple[int, ...]:
    """Return the counts of images that name the snapshots: `stated` ones, multiples of `every`, and the end."""
    return tuple(sorted({*stated, *range(every, images, every), images}))


def load_run(path: Path | str) -> ResolvedRun:
    """Read run.yaml; ValueError where it is not the resolved configuration of a run."""
    document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    try:
        if not isinstance(document, dict):
            raise ValueError(f"got {type(document).__name__}, expected a mapping")
        return run_of(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; write it with `onestep resolve`") from error


def run_of(document: Mapping[str, Any]) -> ResolvedRun:
    """Return the values of a resolved run, the inverse of `document_of`; ValueError for a missing or unknown key."""
    block = dict(document)
    name = block.pop("run", None)
    if not isinstance(name, str):
        raise ValueError(f"run: got {name!r}, expected the run's name")
    timm, classes = frozen(block.pop("timm", {})), block.pop("classes", None)
    extractors = frozen(block.pop("extractors", {}))
    run: Run = from_document(Run, block)
    if "snapshots" not in document:
        run = dataclasses.replace(run, snapshots=snapshot_counts(images=run.images, every=run.snapshot_every))
    return ResolvedRun(name=name, run=run, timm=timm, extractors=extractors, classes=classes, snapshots=run.snapshots)


def document_of(resolved: ResolvedRun) -> dict[str, Any]:
    """Return the mapping of run.yaml: `run`, the keys of its block, `timm` and `classes` where needed, `snapshots`."""
    others: dict[str, Any] = {"timm": dict(resolved.timm)} if resolved.timm else {}
    others |= {"extractors": dict(resolved.extractors)} if resolved.extractors else {}
    others |= {} if resolved.classes is None else {"classes": resolved.classes}
    block = {key: value for key, value in to_document(resolved.run).items() if key != "snapshots"}
    return {"run": resolved.name, **block, **others, "snapshots": list(resolved.snapshots)}


def dump_run(resolved: ResolvedRun) -> str:
    """Return the text of run.yaml."""
    return yaml.safe_dump(document_of(resolved), sort_keys=False, allow_unicode=True)


def to_document(value: Any) -> Any:
    """Return a value as mappings, lists and scalars; options are keys beside their component's name, None is absent."""
    if dataclasses.is_dataclass(value):
        first: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for each in dataclasses.fields(value):
            found = getattr(value, each.name)
            if each.name == "options":
                first |= found
            elif found is not None and not (each.metadata.get("omit_empty") and not found):
                (first if each.name == "name" else rest)[key_of(each)] = found
        return to_document(first | rest)
    if isinstance(value, Mapping):
        return {key: to_document(each) for key, each in value.items()}
    return [to_document(each) for each in value] if isinstance(value, (list, tuple)) else value


def key_of(field_: dataclasses.Field[Any]) -> str:
    """Return the key of a field in documents: its name, or its alias, which may be a word of Python."""
    return str(field_.metadata.get("alias", field_.name))


def from_document(kind: Any, value: Any, *, place: str = "") -> Any:
    """Return the frozen value of type `kind` that `to_document` turns into `value`; values are not checked.

    `kind` is one of the config's dataclasses, or the type of one of their fields. ValueError with the dotted `place`
    where a key of a dataclass is missing or unknown.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass_of(kind, value, place=place)
    kinds = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (each for each in kinds if each is not type(None))
        return None if value is None else from_document(kind, value, place=place)
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(from_document(kinds[0], each, place=f"{place}[{index}]") for index, each in enumerate(value))
    if isinstance(value, Mapping) and len(kinds) == 2 and kinds[1] is not Any:
        read = {key: from_document(kinds[1], each, place=f"{place}.{key}") for key, each in value.items()}
        return types.MappingProxyType(read)
    return frozen(value)


def _dataclass_of(kind: Any, value: Any, *, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place or kind.__name__}: got {value!r}, expected a mapping")
    types_by_field = get_type_hints(kind)
    names = {key_of(each): each.name for each in dataclasses.fields(kind)}
    known = {key: each for key, each in value.items() if key in names and key != "options"}
    others = {key: each for key, each in value.items() if key not in known}
    if others and "options" not in names:
        raise ValueError(f"{place}: unknown key {next(iter(others))!r}; allowed: {', '.join(names)}")
    within = f"{place}." if place else ""
    read = {
        names[key]: from_document(types_by_field[names[key]], each, place=f"{within}{key}")
        for key, each in known.items()
    }
    try:
        return kind(**read, **({"options": frozen(others)} if "options" in names else {}))
    except TypeError as error:
        raise ValueError(f"{place or kind.__name__}: {' '.join(str(error).split())}") from error
