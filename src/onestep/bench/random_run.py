"""A run at full size without its files: networks with random weights, random pixels of the dataset's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep import components
from onestep.autoencoders import Codec, is_latent
from onestep.autoencoders._kl_network import KLNetwork
from onestep.autoencoders.kl import sizes_of
from onestep.bench.option_sets import OptionSet
from onestep.bench.released import release, released_views
from onestep.checkpoints.autoencoder_folder import autoencoder_config
from onestep.checkpoints.denoiser_folder import denoiser_config
from onestep.checkpoints.snapshot import Snapshot
from onestep.classifiers import build_classifier
from onestep.config.constraints import seeds_of
from onestep.config.known import shape_of as known_shape
from onestep.config.latent_checks import holds_latents
from onestep.config.reading import resolved_run
from onestep.config.run import Run, to_document
from onestep.config.sections import Experiment
from onestep.discriminators._backbones import Backbone, classifier_backbone, create_timm, timm_backbone
from onestep.distributed import Ranks
from onestep.features._float_images import FloatFeatures, classifier_features, inception_features, timm_features
from onestep.features.inception import InceptionNetwork
from onestep.networks import build_denoiser, one_step_config, published_architecture
from onestep.objectives import Networks
from onestep.training.assembly import Training, build_networks, compose
from onestep.training.coupled import begin_states
from onestep.training.loop import wrapped_networks
from onestep.training.sources import ImageShape, codec_of
from onestep.training.stored_pairs import StoredPairs

_ROWS = 4096  # enough that no batch repeats itself, few enough for any memory
_EMBEDDING_WIDTH = 320  # of the published class embedding
_PUBLISHED_AUTOENCODER = {
    "name": "kl",
    "in_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}  # sd-vae-ft-mse and sd-vae-ft-ema


def shape_of(experiment: Experiment, run: str, *, given: Mapping[str, int | None]) -> ImageShape:
    """Return the shape of a run's images: as given, of its published teacher, or of its dataset's options and class.

    Raises:
        ValueError: None of these defines it.
    """
    dataset = experiment.datasets[experiment.runs[run].dataset]
    reader = components.load("data", dataset.name)
    known = {key: getattr(reader, key, None) for key in ImageShape._fields} | dict(dataset.options)
    if holds_latents(experiment, experiment.runs[run].dataset):
        known |= known_shape(experiment, experiment.runs[run].dataset)._asdict()
    shape = {key: value for key in ImageShape._fields if isinstance(value := known.get(key), int)}
    if published := _published_teacher(experiment, experiment.runs[run]):
        keys = {"resolution": "img_resolution", "channels": "img_channels", "classes": "label_dim"}
        shape |= {key: published[name] for key, name in keys.items()}
    shape |= {} if dataset.classes is None else {"classes": dataset.classes}
    shape |= {key: value for key, value in given.items() if value is not None}
    shape.setdefault("classes", 0)
    if missing := [key for key in ImageShape._fields if key not in shape]:
        raise ValueError(
            f"runs.{run}: got no {' and '.join(missing)} of the dataset {experiment.runs[run].dataset} without its "
            f"file. Fix: add {' and '.join(f'--{key}' for key in missing)}"
        )
    return ImageShape(**shape)


def _published_teacher(experiment: Experiment, run: Run) -> dict[str, Any] | None:
    """Return the configuration of the checkpoint that a run starts from, if it is in the registry or a folder here."""
    teacher = None if run.teacher is None else experiment.teachers.get(run.teacher)
    if teacher is None or teacher.input is None:
        return None
    source = experiment.inputs[teacher.input]
    if source.file is not None and Path(source.file).is_dir():
        return denoiser_config(Path(source.file))
    name = source.published
    return published_architecture(name or teacher.input.replace("_", "-"))


@dataclass(frozen=True, kw_only=True)
class RandomSources:
    """Pre-trained networks of the right architecture with random weights."""

    experiment: Experiment
    run: Run
    shape: ImageShape

    def teacher(self) -> Snapshot:
        """Return the teacher with random weights."""
        config = self._teacher_config(self.run)
        return Snapshot(config=config, state_dict=build_denoiser(config).state_dict(), note={})

    def initial(self) -> Snapshot:
        """Return a network of the run's own architecture with random weights."""
        if self.run.teacher is not None:
            return self.teacher()
        config = {**to_document(self.run.network), **self.shape.of_network(conditional=self.run.conditional)}
        return Snapshot(config=config, state_dict=build_denoiser(config).state_dict(), note={})

    def pairs(self, run: Run, *, shape: ImageShape) -> StoredPairs:
        """Return pairs with random images."""
        assert run.pairs is not None
        size, classes = (shape.channels, shape.resolution, shape.resolution), shape.classes if run.conditional else 0
        seeds = [seed for block in run.pairs.seeds for seed in seeds_of(block)]
        return StoredPairs(
            pixels=torch.randint(256, (len(seeds), *size), dtype=torch.uint8),
            labels=torch.randint(max(classes, 1), (len(seeds),)),
            seeds=seeds,
            classes=classes,
            codec=random_codec(self.experiment, run),
            shape=size,
        )

    def _teacher_config(self, run: Run) -> dict[str, Any]:
        """Return the configuration of a run's teacher: of the run that trained it, or the published one."""
        assert run.teacher is not None
        source = self.experiment.teachers[run.teacher].run
        shape = self.shape.of_network(conditional=run.conditional)
        if source is None:
            return {**(_published_teacher(self.experiment, run) or {}), **shape}
        trained = self.experiment.runs[source]
        if trained.network is not None:
            return {**to_document(trained.network), **shape}
        config = self._teacher_config(trained)
        return one_step_config(config, preconditioning=trained.preconditioning or "edm", dropout=trained.dropout or 0.0)

    def _shown(self) -> ImageShape:
        """Return the shape of the images that feature networks see: of a run on latents, of decoded ones."""
        codec = random_codec(self.experiment, self.run)
        if not is_latent(codec):
            return self.shape
        return self.shape._replace(resolution=self.shape.resolution * codec.factor, channels=codec.channels)

    def backbone(self, name: str, *, strides: tuple[int, ...] | None = None) -> Backbone:
        """Return a feature network with random weights."""
        backbone = self.experiment.backbones[name]
        if backbone.run is not None:
            shown = self._shown()
            config = {**to_document(self.experiment.runs[backbone.run].classifier), **shown._asdict()}
            return classifier_backbone(build_classifier(config), channels=shown.channels)
        # Imported here because timm takes a second.
        import timm

        assert backbone.timm is not None
        return timm_backbone(timm.create_model(backbone.timm, pretrained=False), name=backbone.timm, strides=strides)

    def vectors(self, name: str, *, resolution: int | None = None) -> FloatFeatures:
        """Return a network from images to vectors with random weights; of timm, for images of this resolution."""
        backbone = self.experiment.backbones[name]
        if backbone.run is not None:
            config = {**to_document(self.experiment.runs[backbone.run].classifier), **self.shape._asdict()}
            return classifier_features(build_classifier(config), channels=self.shape.channels)
        if backbone.timm is not None:
            return timm_features(create_timm(backbone.timm), resolution=resolution)
        return inception_features(InceptionNetwork())

    def tensors(self, name: str, *, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Tensor]:
        """Return positive random tensors."""
        return {key: torch.rand(shape) for key, shape in shapes.items()}

    def class_embedding(self) -> Tensor | None:
        """Return a random class embedding if the run's discriminator starts from one."""
        discriminator = self.run.discriminator
        if discriminator is None or discriminator.class_embeddings is None or not self.run.conditional:
            return None
        return torch.randn(self.shape.classes, _EMBEDDING_WIDTH)


def random_codec(experiment: Experiment, run: Run) -> Codec:
    """Return a run's codec; of one with a network, random weights of its input's sizes, or of the published ones."""
    if run.codec is None or run.codec.input is None:
        return codec_of(run)
    folder = Path(experiment.inputs[run.codec.input].file or "")
    places = [path for path in (folder / "config.json", folder / "vae" / "config.json") if path.is_file()]
    config = autoencoder_config(places[0]) if places else _PUBLISHED_AUTOENCODER
    weights = Snapshot(config=config, state_dict=KLNetwork(sizes_of(config)).state_dict(), note={"sha256": ""})
    return components.build("autoencoders", run.codec, weights=weights)


def _random_stored(shape: ImageShape, *, latents: bool) -> Tensor:
    """Return a dataset of random pixels, or of means and deviations of latents."""
    if latents:
        return torch.rand(_ROWS, 2 * shape.channels, shape.resolution, shape.resolution)
    return torch.randint(256, (_ROWS, shape.channels, shape.resolution, shape.resolution), dtype=torch.uint8)


def random_training(
    experiment: Experiment,
    run: str,
    *,
    options: OptionSet,
    shape: ImageShape,
    batch: int | None,
    ranks: Ranks,
    micro_batch: int | None = None,
) -> Training:
    """Build a run with random weights and the execution settings of an option set.

    Raises:
        ValueError: The device does not support them, or the architecture of the run's teacher is unknown.
    """
    resolved = resolved_run(experiment, run)
    chosen = options.applied_to(resolved.run)
    chosen = replace(chosen, batch=batch or chosen.batch)
    sources = RandomSources(experiment=experiment, run=chosen, shape=shape)
    classes = shape.classes if chosen.conditional else 0
    training = compose(
        replace(resolved, run=chosen),
        built=build_networks(chosen, sources=sources, shape=shape),
        codec=random_codec(experiment, chosen),
        pixels=_random_stored(shape, latents=holds_latents(experiment, chosen.dataset)),
        conditions=torch.eye(classes)[torch.randint(classes, (_ROWS,))] if classes else None,
        ranks=ranks,
        micro_batch=micro_batch,
    )
    if options.as_released:
        release(training)
    if ranks.device.type != "meta":
        begin_states(training, ranks=ranks, most=_ROWS)
    return training


def random_wrapped(training: Training, *, options: OptionSet) -> Networks:
    """Return the networks as first-order phases call them, under an option set."""
    wrapped = wrapped_networks(training)
    if not options.as_released:
        return wrapped
    rows = min(training.run.batch, training.micro_batch or training.run.batch)
    return released_views(wrapped, families=training.families, rows=rows)
