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
    from onestep import gpus
    from onestep.discriminators import build_backbone
    from onestep.evaluation.class_means import write_class_means

    with gpus.own():
        write_class_means(build_backbone(backbone, timm=timm), data, resolution=resolution, output=output)
    return 0


def extract(
    *,
    images: Path,
    features: Mapping[str, Any],
    features_name: str | None = None,
    weights: Path,
    dataset: str | None = None,
    input: str | None = None,
    output: Path,
) -> int:
    """Extract features of generated images or of a dataset.

    Args:
        images: Generated images (.npz) or a dataset archive (.zip).
        features: The feature extractor and its options, as in config.yaml (JSON).
        features_name: Name of the feature extractor in config.yaml, recorded in the output.
        weights: Weights of the feature extractor.
        dataset: Name of the dataset, recorded in the output; generated images have their own record.
        input: Name of the input with real images, recorded likewise.
        output: The features (.npz).
    """
    from onestep import gpus
    from onestep.evaluation.extraction import check_images, feature_network, write_features

    check_images(images)
    subject = {key: name for key, name in (("dataset", dataset), ("input", input)) if name is not None}
    with gpus.own():
        network = feature_network(features, weights=weights, name=features_name)
        write_features(network, images, output=output, subject=subject or None)
    return 0


def observe(
    *,
    weights: Path,
    sampler: Mapping[str, Any],
    seeds: range,
    model: str | None = None,
    sampler_name: str | None = None,
    batch: int = 256,
    features: Mapping[str, Mapping[str, Any]],
    feature_weights: Mapping[str, Path],
    processes: int = 1,
    grid: Path | None = None,
    images: Path | None = None,
    codec: Path | None = None,
    output: Path,
) -> int:
    """Generate one image per seed and extract features at once; images are stored only on request.

    Args:
        weights: A teacher or a snapshot.
        sampler: The sampler and its options, as in config.yaml (JSON).
        seeds: First and last seed, as `0-1999`.
        model: Name of the model, recorded in the output; needed to measure the features.
        sampler_name: Name of the sampler in config.yaml, recorded likewise.
        batch: Images per batch.
        features: Feature extractors by name, each with its options, as in config.yaml (JSON).
        feature_weights: Their weights by name.
        processes: Processes on this machine, one per GPU.
        grid: Also write the first images here (.npz).
        images: Also write all images here (.npz), as `onestep sample` does; with one process.
        codec: Autoencoder that decodes the images of a network on latents; by default the one in `results/`.
        output: Prefix of the features: `{output}.{name}.npz`.
    """
    options = dict(locals())
    if processes > 1:
        from onestep.launch.local import command_line, run_locally

        return run_locally(command_line("observe", options), processes=processes)
    from onestep import distributed, gpus
    from onestep.evaluation.extraction import feature_network
    from onestep.evaluation.fused_sampling import sample_features
    from onestep.sampling._options import sampling_job

    with gpus.own(), distributed.joined() as ranks:
        networks = {
            output.with_name(f"{output.name}.{name}.npz"): feature_network(
                block, weights=feature_weights[name], name=name
            )
            for name, block in features.items()
        }
        job = sampling_job(
            weights,
            sampler=sampler,
            seeds=seeds,
            model=model,
            sampler_name=sampler_name,
            batch=batch,
            output=output,
            codec=codec,
        )
        sample_features(job, networks, grid=grid, images=images, ranks=ranks)
    return 0


def measure(
    *,
    metric: Mapping[str, Any] | None = None,
    name: str | None = None,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    generated: Sequence[Path] = (),
    real: Sequence[Path] = (),
    held_out: Sequence[Path] = (),
    real_input: str | None = None,
    pixels: Path | None = None,
    real_pixels: Path | None = None,
    output: Path,
) -> int:
    """Compute one metric of one seed block, or several at once.

    Args:
        metric: The metric and its options, as in config.yaml (JSON).
        name: Name of the metric in config.yaml.
        each: Instead of one metric all in one process, which reads each file once: by name the `metric`, and its files
            under the names of the options below (JSON).
        generated: Features of generated images, for metrics that read features. This and the two below are given once
            for each feature network, in the same order.
        real: Features or statistics of real images, or features of the generated images of another model.
        held_out: Features of real images that are not in the dataset.
        real_input: Name of the input with the statistics, recorded in the output.
        pixels: Generated images (.npz), for metrics that read pixels.
        real_pixels: A dataset archive (.zip), for metrics that compare pixels.
        output: The numbers (.json); with --each the prefix of `{output}.{name}.json`.
    """
    from onestep.evaluation.orders import measure_each, measure_one

    if each is not None:
        others = {"metric": metric, "name": name, "generated": generated, "real": real, "pixels": pixels}
        if given := [key for key, value in others.items() if value]:
            raise ValueError(f"--each: got --{given[0]} as well, expected it in --each. Fix: omit it")
        measure_each(each, output=output)
        return 0
    if metric is None or name is None:
        raise ValueError(f"--{'metric' if metric is None else 'name'}: got none, expected it, or --each. Fix: add it")
    order = {"metric": metric, "generated": generated, "real": real, "held_out": held_out, "real_input": real_input}
    measure_one({**order, "pixels": pixels, "real_pixels": real_pixels}, name=name, output=output)
    return 0


def evaluate(
    images: Path,
    output: Path,
    *,
    reference: Path | None = None,
    features: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    metrics: Sequence[Mapping[str, Any]],
) -> int:
    """Measure images from anywhere: a folder of pictures, a .zip, an .npz or a .pt.

    Examples:
      onestep evaluate images/ fid.json --metrics frechet --features inception --weights FILE --reference real.zip
      onestep evaluate a.npz pr.json --metrics precision_recall --features dinov2 --weights FILE --reference real/
      onestep evaluate a.npz b.json --metrics '{"name": "inception_score", "splits": 10}' --features classifier ...

    Args:
        images: The images to measure: a folder, a .zip, an .npz or a .pt.
        output: The numbers (.json).
        reference: Real images in the same forms, features, or published statistics (.npz with `mu` and `sigma`, or a
            .pkl of EDM2).
        features: The feature extractor by name, as `inception`, or with options as in config.yaml (JSON); not for
            metrics of pixels alone.
        weights: Weights of the feature extractor.
        metrics: Metrics by name, as `frechet,precision_recall`, or with options as in config.yaml (JSON).
    """
    from onestep.evaluation.extraction import feature_network
    from onestep.evaluation.standalone import announced, built_metrics, check_inputs, value_table, write_evaluation

    if output.suffix != ".json":
        raise ValueError(f"OUTPUT: got {output}, expected a name that ends in .json")
    check_inputs(images, reference)
    measured = built_metrics(metrics)
    if features is not None and weights is None:
        raise ValueError(f"--weights: got none, expected the file of --features {features.get('name')}. Fix: add it")
    try:
        network = None if features is None or weights is None else feature_network(features, weights=weights, name=None)
    except (TypeError, KeyError) as error:
        raise ValueError(f"--features: {error}. Fix: write it as a block of config.yaml") from error
    for line in announced(measured, network=network, images=images, reference=reference):
        print(line, flush=True)
    write_evaluation(network, measured, images=images, reference=reference, output=output)
    print(f"\n{value_table(output, measured)}\n\n{output}")
    return 0
