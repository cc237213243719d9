"""The verbs that turn images into features and features into numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def embed(*, backbone: Path, timm: str | None = None, data: Path, resolution: int, output: Path) -> int:
    """Compute class embeddings: the mean of a backbone's last features over the images of each class.

    Args:
        backbone: Weights of the backbone.
        timm: Name of the backbone in timm; without it the file is a snapshot of a classifier.
        data: A dataset archive with labels (.zip).
        resolution: Size to which images are resized.
        output: The table [classes, features] (.safetensors).
    """
    from onestep.discriminators import build_backbone
    from onestep.evaluation.class_means import write_class_means

    write_class_means(build_backbone(backbone, timm=timm), data, resolution=resolution, output=output)
    return 0


def extract(*, images: Path, features: Mapping[str, Any], weights: Path, output: Path) -> int:
    """Extract features of generated images or of a dataset.

    Args:
        images: Generated images (.npz) or a dataset archive (.zip).
        features: The feature extractor and its options, as in config.yaml (JSON).
        weights: Weights of the feature extractor.
        output: The features (.npz).
    """
    from onestep import plugins
    from onestep.evaluation.extraction import write_features

    extractor = plugins.build("features", features, weights=weights)
    write_features(extractor, images, weights=weights, options=features, output=output)
    return 0


def measure(*, metric: Mapping[str, Any], name: str, generated: Path, real: Path, output: Path) -> int:
    """Compute one metric of one seed block.

    Args:
        metric: The metric and its options, as in config.yaml (JSON).
        name: Name of the metric in config.yaml.
        generated: Features of generated images.
        real: Features or statistics of real images.
        output: The numbers (.json).
    """
    from onestep import plugins
    from onestep.evaluation.measurement import write_measurement

    write_measurement(plugins.build("metrics", metric), name=name, generated=generated, real=real, output=output)
    return 0


def evaluate(
    *,
    images: Path,
    reference: Path | None = None,
    features: Mapping[str, Any],
    weights: Path,
    metrics: Sequence[Mapping[str, Any]] = (),
    output: Path,
) -> int:
    """Measure images from anywhere: a folder of pictures, a .zip, an .npz or a .pt.

    Args:
        images: The images.
        reference: Real images in the same forms, features, or published statistics (.npz with `mu` and `sigma`).
        features: The feature extractor and its options, as in config.yaml (JSON).
        weights: Weights of the feature extractor.
        metrics: Metrics and their options, as in config.yaml (JSON).
        output: The numbers (.json).
    """
    from onestep import plugins
    from onestep.evaluation.anywhere import NamedMetric, write_evaluation
    from onestep.evaluation.extraction import FeatureNetwork

    try:
        extractor = plugins.build("features", features, weights=weights)
        measured = [NamedMetric(metric=plugins.build("metrics", block), options=block) for block in metrics]
    except (TypeError, KeyError) as error:
        raise ValueError(f"--features and --metrics take blocks as config.yaml has them: {error}") from error
    network = FeatureNetwork(extractor=extractor, weights=weights, options=features)
    values = write_evaluation(network, measured, images=images, reference=reference, output=output)
    print("\n".join(f"{name}: {value:.6g}" for name, value in values.items()))
    return 0


def select(*, choice: Mapping[str, Any], results: Path, output: Path) -> int:
    """Select a run's best snapshot by a metric.

    Args:
        choice: `model`, its name; `direction`, lower or higher; `images`, the candidates (JSON).
        results: The results folder.
        output: The weights of the selected snapshot (.safetensors); its record is written beside it (.json).
    """
    from onestep.evaluation.selection import write_selection

    write_selection(choice, results=results, output=output)
    return 0
