"""One training as frozen values: an entry of `runs:` in config.yaml, and run.yaml, its form with all defaults.

Standard dataclasses only: training reads run.yaml without pydantic. `onestep.config.read_experiment` checks config.yaml
against the same dataclasses. Lengths are counted in images.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from onestep.config.constraints import (
    Constraint,
    Count,
    Name,
    Named,
    Natural,
    NotNegative,
    Options,
    Positive,
    Share,
    ShareBelowOne,
    Text,
    empty,
    frozen,
)

OMIT_EMPTY: Mapping[str, bool] = types.MappingProxyType({"omit_empty": True})
"""Metadata of fields that documents leave out where they are empty."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A choice of a family with its options: `{name: d2o, sigma: 80.0, ...}`.

    Attributes:
        name: A file of the family's folder, `my_module:MyClass`, or an entry point of the group `onestep.FAMILY`.
        options: Keyword arguments of the class. In YAML they are keys beside `name`.
    """

    name: str
    options: Options = field(default_factory=empty)


@dataclass(frozen=True, kw_only=True)
class NetworkBlock:
    """A denoiser from scratch: a choice of networks/ and its preconditioning.

    Attributes:
        options: Keyword arguments of its class, but for image size, channels and classes, which the dataset gives.
        preconditioning: The law around the network: `edm` or `d2o`.
    """

    name: str
    options: Options = field(default_factory=empty)
    preconditioning: str


@dataclass(frozen=True, kw_only=True)
class DiscriminatorBlock:
    """A choice of discriminators/; `name` and `options` as in `Component`.

    Attributes:
        backbones: Entries of the section `backbones`, whose frozen features it classifies.
        class_embeddings: Entry of the section `class_embeddings` that initializes its class embedding; by default
            random.
    """

    name: str
    options: Options = field(default_factory=empty)
    backbones: tuple[Name, ...] = ()
    class_embeddings: Name | None = None


@dataclass(frozen=True, kw_only=True)
class CodecBlock:
    """A choice of autoencoders/, the map between pixels and the space of the network.

    Attributes:
        input: The input that holds its weights, for codecs that have some.
    """

    name: str
    options: Options = field(default_factory=empty)
    input: Name | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A factor on the learning rate, as a function of the images seen.

    Attributes:
        name: `constant`; `cosine`: from 1 at the end of the warm-up to `final` at the end of the run; `inverse_sqrt`:
            1 / sqrt(max(images / decay_from, 1)) (EDM2, arXiv:2312.02696).
        warmup: Images over which the factor rises linearly from 0; 0 is no warm-up.
        final: The factor of `cosine` at the end of the run.
        decay_from: Images after which `inverse_sqrt` decays.
    """

    name: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    warmup: Natural = 0
    final: Share = 0.0
    decay_from: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer of one role.

    Attributes:
        name: `adam`, `adamw` (decoupled weight decay) or `radam`.
        weight_decay: Decoupled weight decay of `adamw`, L2 penalty of the others; by default none.
        clip_norm: Largest norm of the role's gradient; larger ones are scaled down. By default no limit.
        schedule: Factor on `lr` over the run; by default 1.
    """

    name: Literal["adam", "adamw", "radam"] = "adam"
    lr: Positive
    betas: Annotated[tuple[ShareBelowOne, ...], Constraint(min_length=2, max_length=2)]
    eps: Positive
    weight_decay: NotNegative | None = None
    clip_norm: Positive | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True, kw_only=True)
class Ema:
    """EMA of the weights, which snapshots publish.

    Attributes:
        half_life: Half-life of the main EMA, in images.
        ramp_up: Largest half-life as a share of the images seen; 0 is no limit.
        others: Half-life of each further EMA, in images; it has its own file beside every snapshot.
    """

    half_life: Positive
    ramp_up: NotNegative
    others: tuple[Count, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number types of a training. R1 penalties and optimizers compute in float32; sampling has its own settings.

    Attributes:
        tf32: Allow TF32 in float32 products on CUDA devices. The reference does not.
        generator: Number type of the generator's image path.
        discriminator: Number type of frozen features and of the heads' convolutions.
    """

    tf32: bool = False
    generator: Literal["float32", "bfloat16"] = "float32"
    discriminator: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Compile:
    """Execution of a training; numbers differ by rounding alone.

    Attributes:
        networks: Apply torch.compile to the generator and to frozen features, but not in R1 penalties. Costs minutes
            at the start.
        cuda_graphs: Record the compiled kernels as CUDA graphs; needs `networks` and a CUDA device.
        fused_optimizer: Use torch's fused optimizer, which `radam` does not have.
        channels_last: Store the generator's images with channels innermost.
    """

    networks: bool = False
    cuda_graphs: bool = False
    fused_optimizer: bool = False
    channels_last: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training. It has exactly one of `network`, `teacher` and `classifier`.

    Attributes:
        dataset: Entry of `datasets` with the training images.
        conditional: Whether the networks receive the images' classes.
        teacher: Entry of `teachers`, whose weights initialize the generator.
        classifier: A classifier from scratch, a choice of classifiers/.
        preconditioning: The generator's law, in place of the teacher's; with a teacher only.
        dropout: The generator's dropout, in place of the teacher's; with a teacher only.
        codec: The map between pixels and the space of the networks; by default the identity.
        freeze: Freeze levels of the network's file, or patterns of parameter names; these are not trained.
        objective: The losses and the order in which they are applied, a choice of objectives/.
        discriminator: The discriminator, for objectives that need one.
        networks: Further networks of the objective, by role, for roles that it trains from scratch.
        optimizers: The optimizer of each role that the objective trains.
        batch: Images per step, over all ranks.
        snapshot_every: Images between snapshots.
        non_finite_limit: Largest share of a gradient's entries that may be NaN or infinite; beyond it the run stops.
        seed: Seed of weights, data order and noise.
    """

    dataset: Name
    conditional: bool
    network: NetworkBlock | None = None
    teacher: Name | None = None
    classifier: Component | None = None
    preconditioning: Literal["edm", "d2o"] | None = None
    dropout: ShareBelowOne | None = None
    codec: CodecBlock | None = None
    freeze: tuple[Text, ...] = ()
    objective: Component
    discriminator: DiscriminatorBlock | None = None
    networks: Named[Component] = field(default_factory=empty, metadata=OMIT_EMPTY)
    optimizers: Named[Optimizer]
    ema: Ema
    precision: Precision = Precision()
    compile: Compile = Compile()
    batch: Count
    images: Count
    snapshot_every: Count
    non_finite_limit: Share
    seed: Natural

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Counts of images that name the snapshots; each is taken at the first step that reaches its count."""
        return (*range(self.snapshot_every, self.images, self.snapshot_every), self.images)


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """The content of run.yaml: a run with its name (key `run` of the file), and what it needs of other sections.

    Attributes:
        timm: Names in timm of those of its backbones that are networks of timm.
        snapshots: Counts of images at which snapshots are published.
    """

    name: str
    run: Run
    timm: Mapping[str, str] = field(default_factory=empty)
    snapshots: tuple[int, ...]


def load_run(path: Path | str) -> ResolvedRun:
    """Read run.yaml.

    Raises:
        ValueError: The file is not the resolved configuration of a run.
    """
    document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    try:
        if not isinstance(document, dict):
            raise ValueError(f"got {type(document).__name__}, expected a mapping")
        return run_of(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; write it with `onestep resolve`") from error


def run_of(document: Mapping[str, Any]) -> ResolvedRun:
    """Return the values of a resolved run, the inverse of `document_of`.

    Raises:
        ValueError: A key is missing or unknown.
    """
    block = dict(document)
    name = block.pop("run", None)
    if not isinstance(name, str):
        raise ValueError(f"run: got {name!r}, expected the run's name")
    timm, snapshots = block.pop("timm", {}), block.pop("snapshots", None)
    run: Run = from_document(Run, block)
    return ResolvedRun(
        name=name, run=run, timm=frozen(timm), snapshots=run.snapshots if snapshots is None else tuple(snapshots)
    )


def document_of(resolved: ResolvedRun) -> dict[str, Any]:
    """Return the mapping that run.yaml holds: `run`, the keys of the run's block, `timm` where needed, `snapshots`."""
    return {
        "run": resolved.name,
        **to_document(resolved.run),
        **({"timm": dict(resolved.timm)} if resolved.timm else {}),
        "snapshots": list(resolved.snapshots),
    }


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
                (first if each.name == "name" else rest)[each.name] = found
        return to_document(first | rest)
    if isinstance(value, Mapping):
        return {key: to_document(each) for key, each in value.items()}
    return [to_document(each) for each in value] if isinstance(value, (list, tuple)) else value


def from_document(kind: Any, value: Any, *, place: str = "") -> Any:
    """Return the frozen value of type `kind` that `to_document` turns into `value`; values are not checked.

    Args:
        kind: One of the config's dataclasses, or the type of one of their fields.
        value: Mappings, lists and scalars.
        place: Dotted place of the value, for messages.

    Raises:
        ValueError: A key of a dataclass is missing or unknown.
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
    hints = get_type_hints(kind)
    types_by_field = {each.name: hints[each.name] for each in dataclasses.fields(kind)}
    known = {key: each for key, each in value.items() if key in types_by_field and key != "options"}
    others = {key: each for key, each in value.items() if key not in known}
    if others and "options" not in types_by_field:
        raise ValueError(f"{place}: unknown key {next(iter(others))!r}; allowed: {', '.join(types_by_field)}")
    within = f"{place}." if place else ""
    read = {key: from_document(types_by_field[key], each, place=f"{within}{key}") for key, each in known.items()}
    try:
        return kind(**read, **({"options": frozen(others)} if "options" in types_by_field else {}))
    except TypeError as error:
        raise ValueError(f"{place or kind.__name__}: {' '.join(str(error).split())}") from error
