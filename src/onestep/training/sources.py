"""Networks of a run from its input files and from the blocks of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from onestep import components
from onestep.autoencoders import Codec
from onestep.autoencoders.identity import Identity
from onestep.checkpoints.published_weights import read_class_embeddings
from onestep.checkpoints.snapshot import Snapshot, read_snapshot
from onestep.classifiers import build_classifier
from onestep.config.run import Run, to_document
from onestep.discriminators import build_backbone, build_discriminator
from onestep.discriminators._backbones import Backbone
from onestep.networks import build_denoiser, frozen_parameters, one_step_config, teacher_weights_for


class ImageShape(NamedTuple):
    """Shape of a dataset's images.

    Attributes:
        resolution: H and W.
        channels: C.
        classes: K of the dataset.
    """

    resolution: int
    channels: int
    classes: int


class Built(NamedTuple):
    """A network and the configuration that builds it again; None if it cannot be published."""

    network: nn.Module
    config: Mapping[str, Any] | None = None


class Sources(Protocol):
    """Where the weights of a run's pre-trained networks come from."""

    def teacher(self) -> Snapshot:
        """Return the run's teacher."""
        ...

    def backbone(self, name: str) -> Backbone:
        """Return a frozen feature network."""
        ...

    def class_embedding(self) -> Tensor | None:
        """Return the initial class embedding of discriminators [K, E]; None for a random one."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileSources:
    """Files.

    Attributes:
        teacher_file: Snapshot or converted checkpoint; None if the run has no teacher.
        backbones: File of each backbone by name.
        timm: Names in timm of the backbones that are networks of timm; all others are classifiers.
        class_embeddings: File of the class embedding, or None.
    """

    teacher_file: Path | None
    backbones: Mapping[str, Path] = field(default_factory=dict)
    timm: Mapping[str, str] = field(default_factory=dict)
    class_embeddings: Path | None = None

    def teacher(self) -> Snapshot:
        """Read the teacher.

        Raises:
            ValueError: The run has none, or the file is damaged.
        """
        if self.teacher_file is None:
            raise ValueError("teacher: got none, expected one for this objective. Fix: name a teacher in the run")
        return read_snapshot(self.teacher_file)

    def backbone(self, name: str) -> Backbone:
        """Read a backbone.

        Raises:
            ValueError: There is no such file, or it is damaged.
        """
        if name not in self.backbones:
            raise ValueError(f"backbones: got {sorted(self.backbones)}, expected {name!r} among them")
        return build_backbone(self.backbones[name], timm=self.timm.get(name))

    def class_embedding(self) -> Tensor | None:
        """Read the class embedding."""
        return None if self.class_embeddings is None else read_class_embeddings(self.class_embeddings)


def codec_of(run: Run) -> Codec:
    """Build a run's codec.

    Raises:
        ValueError: It needs weights from an input, which training does not supply.
    """
    if run.codec is None:
        return Identity()
    if run.codec.input is not None:
        raise ValueError(f"codec.input: got {run.codec.input!r}, expected none: no codec of this version has weights")
    return components.build("autoencoders", run.codec)


def encoded_shape(codec: Codec, *, resolution: int, channels: int, classes: int) -> ImageShape:
    """Return the shape of a dataset's images after encoding."""
    images = codec.encode(torch.zeros(1, channels, resolution, resolution, dtype=torch.uint8))
    return ImageShape(resolution=images.shape[-1], channels=images.shape[1], classes=classes)


def pretrained(run: Run, *, sources: Sources, shape: ImageShape) -> Built:
    """Build the denoiser that a run trains, with its freeze levels applied.

    Raises:
        ValueError: The teacher does not fit the dataset or the run.
    """
    classes = shape.classes if run.conditional else 0
    if run.teacher is not None:
        if run.preconditioning is None or run.dropout is None:
            raise ValueError("preconditioning, dropout: got none, expected both beside a teacher")
        teacher = sources.teacher()
        config = one_step_config(teacher.config, preconditioning=run.preconditioning, dropout=run.dropout)
        _check_teacher(config, run=run, shape=shape)
        network = build_denoiser(config)
        network.load_state_dict(teacher_weights_for(network, teacher.state_dict), strict=True)
    elif run.network is not None:
        config = {
            **to_document(run.network),
            "img_resolution": shape.resolution,
            "img_channels": shape.channels,
            "label_dim": classes,
        }
        network = build_denoiser(config)
    else:
        raise ValueError("network: got none, expected a `network` or a `teacher` for this objective")
    freeze(network, run.freeze)
    return Built(network, config)


def _check_teacher(config: Mapping[str, Any], *, run: Run, shape: ImageShape) -> None:
    expected = {"img_resolution": shape.resolution, "img_channels": shape.channels}
    for key, value in expected.items():
        if config[key] != value:
            raise ValueError(f"teacher {run.teacher}: got {key} {config[key]}, expected the dataset's {value}")
    classes = config.get("label_dim", 0)
    if bool(classes) != run.conditional:
        given = str(run.conditional).lower()
        raise ValueError(f"teacher {run.teacher}: got {classes} classes, expected a teacher for conditional: {given}")


def teacher_copy(*, sources: Sources) -> Built:
    """Build the teacher as its file states."""
    teacher = sources.teacher()
    network = build_denoiser(teacher.config)
    network.load_state_dict(teacher.state_dict, strict=True)
    return Built(network, teacher.config)


def build_fresh(
    family: str, block: Mapping[str, Any] | None, *, run: Run, sources: Sources, shape: ImageShape, rank: int
) -> Built:
    """Build a network from its block, with random weights.

    Args:
        family: Its family folder.
        block: Name and options; None is an error.
        run: The training.
        sources: Of its pre-trained parts.
        shape: Of the images.
        rank: Of this process.

    Raises:
        ValueError: There is no block, or no builder of this family.
    """
    if block is None:
        raise ValueError(f"{family}: got no block, expected one for this objective")
    classes = shape.classes if run.conditional else 0
    if family == "classifiers":
        config = {**block, **shape._asdict()}
        return Built(build_classifier(config), config)
    if family == "networks":
        config = {
            **block,
            "img_resolution": shape.resolution,
            "img_channels": shape.channels,
            "label_dim": classes,
        }
        return Built(build_denoiser(config), config)
    if family == "discriminators":
        backbones = {name: sources.backbone(name) for name in block["backbones"]}
        return Built(
            build_discriminator(
                block,
                backbones=backbones,
                embedding=sources.class_embedding(),
                classes=classes,
                seed=run.seed,
                rank=rank,
            )
        )
    raise ValueError(f"family {family!r}: got no builder, expected classifiers, networks or discriminators")


def freeze(network: nn.Module, levels: Any) -> None:
    """Freeze the parameters of the run's levels; with D2O-F most of the convolutions."""
    frozen = set(frozen_parameters(network, tuple(levels)))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
