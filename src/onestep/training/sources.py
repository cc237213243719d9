"""Networks of a run from its input files and from the blocks of its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from onestep import components
from onestep.autoencoders import Codec
from onestep.autoencoders.identity import Identity
from onestep.checkpoints.published_weights import read_class_embeddings, read_published_weights
from onestep.checkpoints.snapshot import Snapshot, read_snapshot
from onestep.classifiers import build_classifier, load_classifier
from onestep.config.run import Run, to_document
from onestep.config.starts import FRESH
from onestep.discriminators import build_backbone, build_discriminator
from onestep.discriminators._backbones import Backbone, create_timm, load_timm_weights
from onestep.discriminators._backbones import freeze as freeze_parameters
from onestep.features._float_images import FloatFeatures, classifier_features, inception_features, timm_features
from onestep.features.inception import read_inception
from onestep.networks import build_denoiser, frozen_parameters, one_step_config, teacher_weights_for
from onestep.objectives import FeatureNetwork
from onestep.ratios import build_ratio
from onestep.training.assignment import Inputs
from onestep.training.initial_weights import initialise
from onestep.training.stored_pairs import StoredPairs, stored_pairs


class ImageShape(NamedTuple):
    """H and W, C, and K of a dataset's images."""

    resolution: int
    channels: int
    classes: int

    def of_network(self, *, conditional: bool) -> dict[str, int]:
        """Return the options of a denoiser of such images."""
        classes = self.classes if conditional else 0
        return {"img_resolution": self.resolution, "img_channels": self.channels, "label_dim": classes}


class Built(NamedTuple):
    """A network, the configuration that builds it again (None if it cannot be published), and its family folder."""

    network: nn.Module
    config: Mapping[str, Any] | None = None
    family: str = "networks"


class Sources(Protocol):
    """Where the weights of a run's pre-trained networks come from."""

    def teacher(self) -> Snapshot:
        """Return the run's teacher."""
        ...

    def initial(self) -> Snapshot:
        """Return the network of the run's `init`, where that names one."""
        ...

    def pairs(self, run: Run, *, shape: ImageShape) -> StoredPairs:
        """Return the run's `pairs` of noise and images of a shape."""
        ...

    def backbone(self, name: str, *, strides: tuple[int, ...] | None = None) -> Backbone:
        """Return a frozen feature network, with the taps of these strides; None for those of discriminators."""
        ...

    def vectors(self, name: str, *, resolution: int | None = None) -> FloatFeatures:
        """Return a frozen network from images to vectors; of timm, for images of this resolution."""
        ...

    def tensors(self, name: str, *, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Tensor]:
        """Return the tensors of a file by name."""
        ...

    def class_embedding(self) -> Tensor | None:
        """Return the initial class embedding of discriminators [K, E]; None for a random one."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileSources:
    """A run's input files.

    `timm` has the names in timm of the backbones that are not classifiers, `extractors` the choices of features/.
    """

    files: Inputs
    timm: Mapping[str, str] = field(default_factory=dict)
    extractors: Mapping[str, str] = field(default_factory=dict)

    def teacher(self) -> Snapshot:
        """Read the teacher, a snapshot or converted checkpoint; without one or from a damaged file, ValueError."""
        if self.files.teacher is None:
            raise ValueError("teacher: got none, expected one for this objective. Fix: name a teacher in the run")
        return read_snapshot(self.files.teacher)

    def initial(self) -> Snapshot:
        """Read the network of the run's `init`; without its file or from a damaged one, ValueError."""
        if self.files.init is None:
            raise ValueError("init: got no file, expected the weights that `init` of the run names. Fix: give --init")
        return read_snapshot(self.files.init)

    def pairs(self, run: Run, *, shape: ImageShape) -> StoredPairs:
        """Read the run's pairs; without them, from a damaged file or of another run, ValueError."""
        if run.pairs is None:
            raise ValueError("pairs: got none, expected `pairs` of the run for this objective")
        classes, size = (shape.classes if run.conditional else 0), (shape.channels, shape.resolution, shape.resolution)
        return stored_pairs(
            self.files.pairs, run=run, classes=classes, codec=codec_of(run, self.files.codec), shape=size
        )

    def backbone(self, name: str, *, strides: tuple[int, ...] | None = None) -> Backbone:
        """Read a backbone; without its file, from a damaged one, or without such taps, ValueError."""
        return build_backbone(self._backbone_file(name), timm=self.timm.get(name), strides=strides)

    def vectors(self, name: str, *, resolution: int | None = None) -> FloatFeatures:
        """Read a network; without its file, from a damaged one, or of timm and not for this resolution, ValueError."""
        path = self._backbone_file(name)
        if name in self.extractors:
            return inception_features(read_inception(path))
        if name not in self.timm:
            classifier, config = load_classifier(path)
            return classifier_features(classifier, channels=config["channels"])
        model, weights = create_timm(self.timm[name]), read_published_weights(path)
        load_timm_weights(model, weights, path=path, name=self.timm[name])
        return timm_features(model, resolution=resolution)

    def tensors(self, name: str, *, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Tensor]:
        """Read tensors by name; without their file, from a damaged one, or of other names or shapes, ValueError."""
        path = self._backbone_file(name)
        found = read_published_weights(path)
        given = {key: tuple(each.shape) for key, each in found.items()}
        if wrong := sorted(key for key in given.keys() | shapes.keys() if given.get(key) != shapes.get(key)):
            raise ValueError(f"{path}: got {given.get(wrong[0])}, expected {shapes.get(wrong[0])} as {wrong[0]}")
        return found

    def _backbone_file(self, name: str) -> Path:
        if name not in self.files.backbones:
            raise ValueError(f"backbones: got {sorted(self.files.backbones)}, expected {name!r} among them")
        return self.files.backbones[name]

    def class_embedding(self) -> Tensor | None:
        """Read the class embedding."""
        file = self.files.class_embeddings
        return None if file is None else read_class_embeddings(file)


def check_fit(run: Run, *, files: Inputs, shape: ImageShape, seen: int, shown: int | None = None) -> None:
    """Compare a run, its files and the shape of its images before anything is built.

    `seen` are the classes that the labels of the images name; `shape` may have more, see `classes` of a dataset.
    `shown` are the channels of its pictures, where its images are latents.

    Raises:
        ValueError: They do not fit each other; the message names the files.
    """
    if run.conditional and seen == 0:
        fix = "Fix: conditional: false, or a dataset with labels"
        raise ValueError(f"{files.data}: got images without labels, expected classes for conditional: true. {fix}")
    if run.conditional and seen > shape.classes:
        raise ValueError(f"{files.data}: got labels of {seen} classes, expected {shape.classes}, its `classes`")
    for path, kind in ((files.teacher if run.teacher else None, "teacher"), (files.init, "init")):
        config = {} if path is None else _config_in(path)
        for key, own in shape.of_network(conditional=run.conditional).items() if "img_resolution" in config else ():
            found = config.get(key) or 0
            if found != own:
                where = f"that of {files.data}" if run.conditional or key != "label_dim" else "for conditional: false"
                lacks = f". Fix: datasets.{run.dataset}.classes: {found}, if the images lack classes"
                fix = lacks if key == "label_dim" and run.conditional and found > own else f". Fix: another {kind}"
                raise ValueError(f"{path}: got {key} {found}, expected {own}, {where}{fix}")
    own, of = (shape.channels, files.data) if shown is None else (shown, files.codec)
    for path in files.backbones.values() if own != 1 else ():
        channels = _config_in(path).get("channels", own)  # of a classifier; networks of timm have none
        if channels != own:
            raise ValueError(f"{path}: got a network of {channels} channels, expected {own} of {of}")


def _config_in(path: Path) -> Mapping[str, Any]:
    """Return the config of a snapshot from its header; none of another file, which is refused where it is read."""
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def codec_of(run: Run, file: Path | None = None) -> Codec:
    """Build a run's codec, one with a network from its file.

    Raises:
        ValueError: The file is missing or damaged, or does not suit the options.
    """
    if run.codec is None:
        return Identity()
    if run.codec.input is None:
        return components.build("autoencoders", run.codec)
    if file is None:
        raise ValueError(f"codec: got no file, expected the network of inputs.{run.codec.input}. Fix: give --codec")
    return components.build("autoencoders", run.codec, weights=file)


def pretrained(run: Run, *, sources: Sources, shape: ImageShape) -> Built:
    """Build the denoiser that a run trains, with its initial weights and its freeze levels.

    Raises:
        ValueError: The teacher or the network of `init` does not fit the dataset or the run.
    """
    weights: Mapping[str, Tensor] | None = None
    if run.teacher is not None:
        assert run.preconditioning is not None and run.dropout is not None
        teacher = sources.teacher()
        config = one_step_config(teacher.config, preconditioning=run.preconditioning, dropout=run.dropout)
        classes = config.get("label_dim", 0)
        for key, value in (("img_resolution", shape.resolution), ("img_channels", shape.channels)):
            if config[key] != value:
                raise ValueError(f"teacher {run.teacher}: got {key} {config[key]}, expected the dataset's {value}")
        if bool(classes) != run.conditional:
            expected = f"a teacher for conditional: {str(run.conditional).lower()}"
            raise ValueError(f"teacher {run.teacher}: got {classes} classes, expected {expected}")
        network, weights = build_denoiser(config), teacher.state_dict
    elif run.network is not None:
        config = {**to_document(run.network), **shape.of_network(conditional=run.conditional)}
        network = build_denoiser(config)
    else:
        raise ValueError("network: got none, expected a `network` or a `teacher` for this objective")
    if run.init is not None and run.init.is_named:
        weights = sources.initial().state_dict
    elif run.init is not None and run.init.source == FRESH:
        weights = None
    initialise(network, run.init, weights=weights, seed=run.seed)
    freeze(network, run.freeze, seed=run.freeze_seed)
    return Built(network, config)


def teacher_copy(*, sources: Sources, dropout: float | None = None) -> Built:
    """Build the teacher as its file states; with a `dropout` of its own as a generator of the teacher's law."""
    teacher = sources.teacher()
    config, law = teacher.config, teacher.config.get("preconditioning", "edm")
    if dropout is not None:
        config = one_step_config(config, preconditioning=law, dropout=dropout)
    network = build_denoiser(config)
    network.load_state_dict(teacher_weights_for(network, teacher.state_dict), strict=True)
    return Built(network, config)


class NamedTensors(nn.Module):
    """Frozen tensors by name; a call returns them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._buffer_of = {name: name.replace(".", "_") for name in tensors}  # buffers have no dots in their names
        for name, tensor in tensors.items():
            self.register_buffer(self._buffer_of[name], tensor.detach().to(torch.float32))

    def forward(self) -> dict[str, Tensor]:
        """Return the tensors."""
        return {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()}


def feature_network(origin: FeatureNetwork, *, sources: Sources) -> nn.Module:
    """Return a frozen entry of `backbones`: a `Backbone`, `FloatFeatures`, or `NamedTensors` of the origin's shapes."""
    if origin.pooled:
        return sources.vectors(origin.name, resolution=origin.resolution)
    if origin.shapes is None:
        return sources.backbone(origin.name, strides=origin.strides)
    return NamedTensors(sources.tensors(origin.name, shapes=origin.shapes))


def build_fresh(
    family: str,
    block: Mapping[str, Any] | None,
    *,
    run: Run,
    sources: Sources,
    shape: ImageShape,
    rank: int,
    mapped: nn.Module | None = None,
) -> Built:
    """Build a network of a family folder from its block, with random weights; `sources` are of its pre-trained parts.

    `mapped` is the denoiser whose inner maps the heads of a discriminator take (`Fresh.maps_of`).

    Raises:
        ValueError: There is no block, or no builder of this family.
    """
    if block is None:
        raise ValueError(f"{family}: got no block, expected one for this objective")
    if family == "classifiers":
        config = {**block, **shape._asdict()}
        return Built(build_classifier(config), config, family)
    if family == "networks":
        config = {**block, **shape.of_network(conditional=run.conditional)}
        return Built(build_denoiser(config), config)
    if family == "discriminators":
        discriminator = build_discriminator(
            block,
            backbones={name: sources.backbone(name) for name in block.get("backbones", ())},
            embedding=sources.class_embedding(),
            classes=shape.classes if run.conditional else 0,
            seed=run.seed,
            rank=rank,
            resolution=shape.resolution,
            channels=shape.channels,
            **_mapped(block["name"], mapped, sources=sources),
        )
        return Built(discriminator, family=family)
    if family == "ratios":
        return _fresh_ratio(block, run=run, sources=sources, shape=shape)
    raise ValueError(f"family {family!r}: got no builder, expected classifiers, networks, discriminators or ratios")


def _mapped(name: str, mapped: nn.Module | None, *, sources: Sources) -> dict[str, Any]:
    """Return the teacher of a discriminator on inner maps, and the shapes of the maps; nothing for another one.

    Raises:
        ValueError: There is no teacher, it has no inner maps, or the objective has maps and this one takes none.
    """
    if "map_shapes" not in components.describe("discriminators", name).parameters:
        if mapped is not None:
            raise ValueError(f"discriminator: got {name}, expected one on inner maps, such as teacher_features")
        return {}
    teacher = None if mapped is not None else freeze_parameters(teacher_copy(sources=sources).network, persistent=False)
    network = getattr(mapped if teacher is None else teacher, "model", None)
    shapes = getattr(network, "map_shapes", None)
    if shapes is None:
        expected = "one with `with_maps` (see onestep/networks/__init__.py)"
        raise ValueError(f"discriminator: got {name} for the network {type(network).__name__}, expected {expected}")
    return {"teacher": teacher, "map_shapes": shapes}


def _fresh_ratio(block: Mapping[str, Any], *, run: Run, sources: Sources, shape: ImageShape) -> Built:
    """Build a ratio network for the architecture of the run's generator, without dropout."""
    teacher = None if run.teacher is None else sources.teacher()
    if teacher is not None:
        network = teacher.config
    elif run.network is not None:
        network = {**to_document(run.network), **shape.of_network(conditional=run.conditional)}
    else:
        raise ValueError("network: got none, expected a `network` or a `teacher` for a ratio network")
    law = network.get("preconditioning", "edm")
    law = "edm" if law == "d2o" else law  # whose factors of the image and of the noise level are EDM's
    config = {**block, "network": one_step_config(network, preconditioning=law, dropout=0.0)}
    weights = None if teacher is None else teacher.state_dict
    # In the precision and the layout of denoisers, of which its encoder is one half.
    return Built(build_ratio(config, teacher=weights), config, "networks")


def freeze(network: nn.Module, levels: Any, *, seed: int | None = None) -> None:
    """Freeze the parameters of the run's levels; with D2O-F most of the convolutions. ValueError: all are frozen.

    With a `seed`, as many others are frozen in their place; see `frozen_parameters`.
    """
    frozen = set(frozen_parameters(network, tuple(levels), seed=seed))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"freeze: got {', '.join(levels)}, the whole network, expected some to be trained")
