"""Measurement: one metric of one block of images, into a JSON with the identity of what was compared.

The reference is features of real images, or published statistics.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onestep.archive import Arrays, published_arrays, read_arrays
from onestep.evaluation.extraction import read_pixels, subject_of
from onestep.files import sha256_of_file, write_json
from onestep.metrics import Metric, Statistics

# Mean and covariance of pooled features (EDM, ADM, clean-fid) and of spatial ones (ADM).
_STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"))
_SUBJECTS = ({"model", "sampler", "seeds"}, {"dataset"}, {"input"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real features [M, D] or their statistics. Values with different `facts`, which are recorded, are not compared."""

    real: np.ndarray | Statistics
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MeasuredFiles:
    """The files that the inputs of a metric are read from; each is read once.

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

    @functools.cached_property
    def extracted(self) -> Arrays | None:
        """The content of `features`."""
        return None if self.features is None else read_arrays(self.features)

    @functools.cached_property
    def images(self) -> np.ndarray:
        """The content of `pixels`, uint8 [N, C, H, W]."""
        assert self.pixels is not None
        return read_pixels(self.pixels)

    @functools.cached_property
    def real_images(self) -> np.ndarray:
        """The content of `real_pixels`, uint8 [M, C, H, W]."""
        assert self.real_pixels is not None
        return read_pixels(self.real_pixels)

    def inputs(self, reference: Reference | None) -> dict[str, Callable[[], Any]]:
        """Return functions that return the inputs of metrics, by name."""
        found = inputs_of({} if self.extracted is None else self.extracted.arrays)
        if reference is not None:
            found["real"] = constant(reference.real)
        if self.pixels is not None:
            found["pixels"] = lambda: self.images
        if self.real_pixels is not None:
            found["real_pixels"] = lambda: self.real_images
        return found


def write_measurement(
    metric: Metric, *, name: str, options: Mapping[str, Any], files: MeasuredFiles, output: Path
) -> None:
    """Measure one block of images; a reference is recorded where `real` or `real_pixels` is given.

    Raises:
        ValueError: The files were made with different feature networks or from different images, lack an input of the
            metric, or do not contain the identity of their images.
    """
    about = {} if files.extracted is None else files.extracted.about
    digest, images = _checked_images(files)
    subject = _subject(files)
    reference = None if files.real is None else _reference(metric, files)
    facts = None if reference is None else dict(reference.facts)
    if "real_pixels" in metric.inputs and files.real_pixels is not None:
        facts = (facts or {}) | {"real_pixels_sha256": _digest(files.real_images)}
    try:
        values = call_metric(metric, name=name, available=files.inputs(reference))
    except ValueError as error:
        against = files.real or files.real_pixels
        place = f"{files.features or files.pixels}" + (f" against {against}" if against else "")
        raise ValueError(f"{place}: {error}") from error
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
            "pixels_sha256": digest,
        },
    )


def call_metric(metric: Metric, *, name: str, available: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the values of a metric, called with those inputs that it declares, each from its function in `available`.

    Raises:
        ValueError: An input is not available, or the metric refuses one.
    """
    missing = [each for each in metric.inputs if each not in available]
    if missing:
        has = ", ".join(available) or "none"
        raise ValueError(f"metric {name!r}: got the inputs {has}, expected {', '.join(missing)} as well")
    values = metric(**{each: available[each]() for each in metric.inputs})
    return {key: float(value) for key, value in values.items()}


def inputs_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """Return functions that return the inputs of metrics that the arrays of a feature network provide, by name."""
    names = {"features": "generated", "probabilities": "probabilities"}
    return {names[name]: constant(array) for name, array in arrays.items() if name in names}


def constant(value: Any) -> Callable[[], Any]:
    """Return a function that returns `value`."""
    return lambda: value


def _checked_images(files: MeasuredFiles) -> tuple[str, int]:
    """Return the digest and the number of the measured images, the same in both files."""
    if files.extracted is None:
        if files.pixels is None:
            raise ValueError("measure: got no images, expected --generated or --pixels")
        return _digest(files.images), len(files.images)
    recorded = files.extracted.about["pixels_sha256"]
    if files.pixels is not None and _digest(files.images) != recorded:
        raise ValueError(f"{files.pixels}: got other images than those of {files.features}. Fix: make both again")
    return recorded, files.extracted.about["images"]


def _subject(files: MeasuredFiles) -> dict[str, str]:
    if files.extracted is not None:
        place, subject = files.features, dict(files.extracted.about.get("subject", {}))
    else:
        assert files.pixels is not None
        place, subject = files.pixels, subject_of(files.pixels)
    if set(subject) not in _SUBJECTS:
        raise ValueError(
            f"{place}: got no identity of its images, expected model, sampler and seeds, or a dataset. "
            "Fix: delete the file and make it again"
        )
    return subject


def _reference(metric: Metric, files: MeasuredFiles) -> Reference:
    """Return the real features or statistics, of the feature network of the measured images."""
    assert files.real is not None
    if files.features is None or files.extracted is None:
        raise ValueError(f"{files.real}: got a reference without features, expected --generated as well")
    reference = read_reference(
        files.real,
        width=features_of(files.extracted, path=files.features).shape[1],
        weights_sha256=files.extracted.about["weights_sha256"],
        takes_statistics=metric.takes_statistics,
        input_name=files.real_input,
    )
    if not reference.facts.keys() & {"dataset", "input", "file"}:
        raise ValueError(f"{files.real}: got no name of a dataset or input, expected one. Fix: extract it again")
    return reference


def _digest(pixels: np.ndarray) -> str:
    """Return the SHA-256 of pixels, uint8 [N, C, H, W], as feature files record it."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def read_reference(
    path: Path, *, width: int, weights_sha256: str, takes_statistics: bool, input_name: str | None = None
) -> Reference:
    """Read features from `onestep extract`, or published statistics, which do not show the weights of their network.

    `width` and `weights_sha256` are those of the generated features. `input_name` is the name of the input that the
    statistics come from; where it is None, the name of the file is recorded.

    Raises:
        ValueError: The file is damaged, was made with other weights, or does not fit.
    """
    found = published_arrays(path, [name for names in _STATISTICS for name in names])
    if found is None:
        source = read_arrays(path)
        if source.about["weights_sha256"] != weights_sha256:
            raise ValueError(f"{path}: got features of different weights of the feature network. Fix: extract it again")
        facts = {"images": source.about["images"], "sha256": source.about["pixels_sha256"]}
        return Reference(real=features_of(source, path=path), facts=source.about.get("subject", {}) | facts)
    if not takes_statistics:
        raise ValueError(f"{path}: got statistics, expected features. Fix: use a reference with images")
    names, statistics = _fitting(found, path=path, width=width)
    origin = {"file": path.name} if input_name is None else {"input": input_name}
    facts = {**origin, "statistics": ", ".join(names), "sha256": sha256_of_file(path)}
    return Reference(real=statistics, facts=facts)


def features_of(source: Arrays, *, path: Path) -> np.ndarray:
    """Return the features in a file; a file without is a ValueError."""
    if "features" not in source.arrays:
        raise ValueError(f"{path}: features: got none, expected an array as `onestep extract` writes it")
    return source.arrays["features"]


def _fitting(found: Mapping[str, np.ndarray], *, path: Path, width: int) -> tuple[tuple[str, str], Statistics]:
    """Return the names of the mean and covariance of that width, and the statistics."""
    pairs = [names for names in _STATISTICS if set(names) <= found.keys()]
    if not pairs:
        expected = " or ".join(" with ".join(names) for names in _STATISTICS)
        raise ValueError(f"{path}: got no statistics, expected {expected}")
    for mean, covariance in pairs:
        if found[mean].shape == (width,):
            statistics = Statistics(mean=found[mean], covariance=found[covariance])
            _check(statistics, names=(mean, covariance), path=path)
            return (mean, covariance), statistics
    widths = ", ".join(f"{names[0]} {list(found[names[0]].shape)}" for names in pairs)
    raise ValueError(
        f"{path}: got statistics {widths}, expected the width of the generated features, {width}. "
        "Fix: use the feature network of the statistics, or another reference"
    )


def _check(statistics: Statistics, *, names: tuple[str, str], path: Path) -> None:
    mean, covariance = statistics.mean, statistics.covariance
    for name, array in zip(names, (mean, covariance), strict=True):
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{path}: {name}: got {array.dtype}, expected float64 or float32")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name}: got values that are not finite. Fix: fetch the file again")
    if covariance.shape != 2 * mean.shape:
        raise ValueError(f"{path}: {names[1]}: got {list(covariance.shape)}, expected {list(2 * mean.shape)}")
    if not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6 * float(np.abs(covariance).max())):
        raise ValueError(f"{path}: {names[1]}: got a matrix that is not symmetric. Fix: fetch the file again")
