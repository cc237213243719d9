"""A run at full size without any of its files: its networks with random weights, pixels of the dataset's shape."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onestep import plugins
from onestep.bench.option_sets import OptionSet
from onestep.classifiers import build_classifier
from onestep.config.reading import run_document
from onestep.config.sections import Experiment
from onestep.discriminators import join_discriminator
from onestep.discriminators._backbones import Backbone, classifier_backbone
from onestep.discriminators._timm_backbones import timm_backbone
from onestep.distributed import Ranks
from onestep.networks import build_denoiser, one_step_config, published_architecture
from onestep.objectives import Players
from onestep.training.assembly import compose, freeze
from onestep.training.loop import Training
from onestep.training.speed import views_of

_DATASET_ROWS = 4096  # enough that no batch repeats itself, few enough for any memory
_EMBEDDING_WIDTH = 320  # of the published class table


class ImageShape(NamedTuple):
    """What a network must know of a dataset.

    Attributes:
        resolution: H and W.
        channels: C.
        classes: K, of the dataset.
    """

    resolution: int
    channels: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class GivenShape:
    """What the command line says of the images; None is left to the config."""

    resolution: int | None = None
    channels: int | None = None
    classes: int | None = None


def shape_of(experiment: Experiment, run: str, *, given: GivenShape) -> ImageShape:
    """Return the shape of a run's images: as given, else of its published teacher, else as the config knows it.

    Raises:
        ValueError: Neither says it.
    """
    known = _dataset_shape(experiment, run) | _teacher_shape(experiment, run)
    known |= {key: value for key, value in vars(given).items() if value is not None}
    known.setdefault("classes", 0)
    if missing := [key for key in ImageShape._fields if key not in known]:
        raise ValueError(
            f"runs.{run}: without its files nothing says the {' and '.join(missing)} of the dataset "
            f"{experiment.runs[run].dataset}; give {' and '.join(f'--{key}' for key in missing)}"
        )
    return ImageShape(**known)


def _dataset_shape(experiment: Experiment, run: str) -> dict[str, int]:
    """Return what a dataset's options, and its reader's class, say without its file."""
    dataset = experiment.datasets[experiment.runs[run].dataset]
    reader = plugins.load("data", dataset.name)
    said = {key: getattr(reader, key, None) for key in ImageShape._fields} | dict(dataset.options)
    return {key: said[key] for key in ImageShape._fields if isinstance(said.get(key), int)}


def _teacher_shape(experiment: Experiment, run: str) -> dict[str, int]:
    published = _published_teacher(experiment, run)
    if published is None:
        return {}
    keys = {"resolution": "img_resolution", "channels": "img_channels", "classes": "label_dim"}
    return {key: published[name] for key, name in keys.items()}


def _published_teacher(experiment: Experiment, run: str) -> dict[str, Any] | None:
    """Return the config of the published checkpoint that a run starts from, if it does and we know it."""
    teacher = experiment.teachers.get(experiment.runs[run].teacher)
    if teacher is None or teacher.pickle is None:
        return None
    name = getattr(experiment.inputs[teacher.pickle], "published", None)
    return published_architecture(name or teacher.pickle.replace("_", "-"))


def random_training(
    experiment: Experiment, run: str, *, options: OptionSet, shape: ImageShape, batch: int | None, ranks: Ranks
) -> Training:
    """Build a run with random weights, computed as an option set says.

    Raises:
        ValueError: The device cannot compute so, or the architecture of the run's teacher is not known.
    """
    document = options.applied_to(run_document(experiment, run))
    document["batch"] = batch or document["batch"]
    torch.manual_seed(document["seed"])
    network, published = _published(experiment, document, shape=shape)
    classes = shape.classes if document["conditional"] else 0
    discriminator = _discriminator(experiment, document, shape=shape, classes=classes)
    if options.as_released and hasattr(discriminator, "memory_format"):
        discriminator.memory_format = torch.contiguous_format
    training = compose(
        document,
        network=network,
        published=published,
        discriminator=discriminator,
        pixels=torch.randint(256, (_DATASET_ROWS, shape.channels, *2 * (shape.resolution,)), dtype=torch.uint8),
        labels=torch.eye(classes)[torch.randint(classes, (_DATASET_ROWS,))] if classes else None,
        ranks=ranks,
    )
    if options.as_released:
        _one_kernel_a_parameter(training)
    return training


def random_views(training: Training, *, options: OptionSet) -> Players:
    """Return the networks as phases of first order see them, under an option set."""
    views = dict(views_of(training.players, speed=training.speed))
    if options.as_released and "discriminator" in views:
        view = copy.copy(views["discriminator"])
        # The value class is frozen; a field of the copy is replaced before anybody has it.
        object.__setattr__(view, "features", _apart(view.features, rows=training.batch))
        views["discriminator"] = view
    return views


class _Halves(NamedTuple):
    """A feature map of generated and real images that never were in one tensor, but are sliced as if they were."""

    first: Tensor
    second: Tensor

    def __getitem__(self, rows: slice) -> Tensor:
        return self.first if rows.start is None else self.second


def _apart(features: Callable[[Tensor], Sequence[Sequence[Tensor]]], *, rows: int) -> Callable[[Tensor], Any]:
    """Return `features`, which takes more than `rows` images in two halves, one after the other."""

    def in_halves(images: Tensor) -> Any:
        if len(images) <= rows:
            return features(images)
        first, second = (features(half) for half in images.split(rows))
        return [[_Halves(*maps) for maps in zip(*critic, strict=True)] for critic in zip(first, second, strict=True)]

    return in_halves


def _one_kernel_a_parameter(training: Training) -> None:
    for optimizer in training.optimizers.values():
        for group in optimizer.param_groups:
            group["foreach"] = False


def _published(
    experiment: Experiment, document: Mapping[str, Any], *, shape: ImageShape
) -> tuple[dict[str, Any], nn.Module]:
    """Return config and network of the role that snapshots publish."""
    if document.get("classifier") is not None:
        config = {**document["classifier"], **shape._asdict()}
        return config, build_classifier(config)
    config = _architecture(experiment, document, shape=shape)
    network = build_denoiser(config)
    freeze(network, document.get("freeze") or ())
    return config, network


def _architecture(experiment: Experiment, document: Mapping[str, Any], *, shape: ImageShape) -> dict[str, Any]:
    if document.get("teacher") is None:
        return {**document["network"], **_shape_options(document, shape=shape)}
    source = experiment.teachers[document["teacher"]].run
    if source is not None:
        config = _architecture(experiment, run_document(experiment, source), shape=shape)
    else:
        config = {
            **(_published_teacher(experiment, document["run"]) or {}),
            **_shape_options(document, shape=shape),
        }
    return one_step_config(config, preconditioning=document["preconditioning"], dropout=document["dropout"])


def _shape_options(document: Mapping[str, Any], *, shape: ImageShape) -> dict[str, int]:
    return {
        "img_resolution": shape.resolution,
        "img_channels": shape.channels,
        "label_dim": shape.classes if document["conditional"] else 0,
    }


def _discriminator(
    experiment: Experiment, document: Mapping[str, Any], *, shape: ImageShape, classes: int
) -> nn.Module | None:
    config = document.get("discriminator")
    if config is None:
        return None
    table = classes and config.get("class_embeddings") is not None
    return join_discriminator(
        config,
        networks={name: _backbone(experiment, name, shape=shape) for name in config["backbones"]},
        embedding=torch.randn(classes, _EMBEDDING_WIDTH) if table else None,
        classes=classes,
        seed=document["seed"],
    )


def _backbone(experiment: Experiment, name: str, *, shape: ImageShape) -> Backbone:
    backbone = experiment.backbones[name]
    if backbone.run is not None:
        config = {**run_document(experiment, backbone.run)["classifier"], **shape._asdict()}
        return classifier_backbone(build_classifier(config), channels=shape.channels)
    # Here and not above, because importing timm takes a second.
    import timm

    return timm_backbone(timm.create_model(backbone.timm, pretrained=False), name=backbone.timm)
