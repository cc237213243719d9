"""Measurement: one metric of one block of images, into a JSON with the identity of what was compared."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep.archive import Arrays, read_arrays
from onestep.evaluation.extraction import read_pixels, subject_of
from onestep.evaluation.references import Reference, features_of, read_reference
from onestep.files import write_json
from onestep.metrics import Metric

_SUBJECTS = ({"model", "sampler", "seeds"}, {"dataset"}, {"input"})


@dataclass(frozen=True, kw_only=True)
class MeasuredFiles:
    """The files that the inputs of a metric are read from.

    Attributes:
        features: Features of the measured images; None for a metric that reads pixels only.
        real: Features of real images, or published statistics; None for a metric of generated images only.
        real_input: Name of the input that published statistics come from.
        pixels: The measured images; None for a metric that reads features only.
        real_pixels: Real images, a dataset archive or .npz.
    """

    features: Path | None = None
    real: Path | None = None
    real_input: str | None = None
    pixels: Path | None = None
    real_pixels: Path | None = None


def write_measurement(
    metric: Metric, *, name: str, options: Mapping[str, Any], files: MeasuredFiles, output: Path
) -> None:
    """Measure one block of images.

    Args:
        metric: The metric.
        name: Its name in config.yaml.
        options: Its config block.
        files: What it reads. A reference is recorded where `real` or `real_pixels` is given.
        output: The JSON to write.

    Raises:
        ValueError: The files were made with different feature networks or from different images, lack an input of the
            metric, or do not contain the identity of their images.
    """
    found = None if files.features is None else read_arrays(files.features)
    subject, images = _subject(files, found)
    reference = None if files.real is None else _reference(metric, files, found)
    facts = None if reference is None else dict(reference.facts)
    if "real_pixels" in metric.inputs and files.real_pixels is not None:
        facts = (facts or {}) | {"real_pixels_sha256": _digest(files.real_pixels)}
    available = _available(files, found, reference)
    try:
        values = call_metric(metric, name=name, available=available)
    except ValueError as error:
        against = [path for path in (files.real, files.real_pixels) if path is not None]
        place = " against ".join(map(str, [files.features or files.pixels, *against[:1]]))
        raise ValueError(f"{place}: {error}") from error
    about = {} if found is None else found.about
    write_json(
        output,
        {
            **subject,
            "images": images,
            "metric": name,
            "values": values,
            "features": about.get("features"),
            "feature_weights_sha256": about.get("weights_sha256"),
            "precision": about.get("network", {}).get("precision", "float32"),
            "reference": facts,
            "options": dict(options),
            "better": dict(metric.values),
            "feature_network": about.get("network"),
            "pixels_sha256": about.get("pixels_sha256") or (files.pixels and _digest(files.pixels)),
        },
    )


def call_metric(metric: Metric, *, name: str, available: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the values of a metric, called with the inputs that it declares.

    Args:
        metric: The metric.
        name: Its name in messages.
        available: Functions that return the inputs, by name.

    Raises:
        ValueError: An input is not available, or the metric refuses one.
    """
    missing = [each for each in metric.inputs if each not in available]
    if missing:
        has = ", ".join(available) or "none"
        raise ValueError(f"metric {name!r}: got the inputs {has}, expected {', '.join(missing)} as well")
    values = metric(**{each: available[each]() for each in metric.inputs})
    return {key: float(value) for key, value in values.items()}


def _available(files: MeasuredFiles, found: Arrays | None, reference: Reference | None) -> dict[str, Callable[[], Any]]:
    """Return what the files provide; pixels are read when a metric uses them."""
    inputs: dict[str, Callable[[], Any]] = {}
    if found is not None:
        arrays = {"generated": found.arrays.get("features"), "probabilities": found.arrays.get("probabilities")}
        inputs |= {key: constant(array) for key, array in arrays.items() if array is not None}
    if reference is not None:
        inputs["real"] = constant(reference.real)
    for key, path in (("pixels", files.pixels), ("real_pixels", files.real_pixels)):
        if path is not None:
            inputs[key] = functools.partial(read_pixels, path)
    return inputs


def constant(value: Any) -> Callable[[], Any]:
    """Return a function that returns `value`."""
    return lambda: value


def _reference(metric: Metric, files: MeasuredFiles, found: Arrays | None) -> Reference:
    """Return the real features or statistics, of the feature network of the measured images."""
    assert files.real is not None
    if files.features is None or found is None:
        raise ValueError(f"{files.real}: got a reference without features, expected --generated as well")
    reference = read_reference(
        files.real,
        width=features_of(found, path=files.features).shape[1],
        weights_sha256=found.about["weights_sha256"],
        takes_statistics=metric.takes_statistics,
        input_name=files.real_input,
    )
    if not reference.facts.keys() & {"dataset", "input", "file"}:
        raise ValueError(f"{files.real}: got no name of a dataset or input, expected one. Fix: extract it again")
    return reference


def _subject(files: MeasuredFiles, found: Arrays | None) -> tuple[dict[str, str], int]:
    """Return the identity and the number of the measured images."""
    if found is not None and files.features is not None:
        place, subject, images = files.features, dict(found.about.get("subject", {})), found.about["images"]
        if files.pixels is not None and _digest(files.pixels) != found.about["pixels_sha256"]:
            raise ValueError(f"{files.pixels}: got other images than those of {files.features}. Fix: make both again")
    elif files.pixels is not None:
        place, subject, images = files.pixels, subject_of(files.pixels), len(read_pixels(files.pixels))
    else:
        raise ValueError("measure: got no images, expected --generated or --pixels")
    if set(subject) not in _SUBJECTS:
        raise ValueError(
            f"{place}: got no identity of its images, expected model, sampler and seeds, or a dataset. "
            "Fix: delete the file and make it again"
        )
    return subject, images


def _digest(path: Path) -> str:
    """Return the SHA-256 of pixels, uint8 [N, C, H, W], as feature files record it."""
    return hashlib.sha256(read_pixels(path).data).hexdigest()
