"""Measurement: one metric of one block of images, into a JSON with the identity of what was compared."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onestep.archive import Arrays, digest_of, published_arrays, read_arrays
from onestep.arithmetic import ARITHMETIC
from onestep.checkpoints.digests import checked, known_digest
from onestep.checkpoints.edm_pickle import read_statistics_pickle
from onestep.evaluation.extraction import check_place, read_pixels, sampled_by, subject_of
from onestep.files import regular_file, sealed, write_json
from onestep.metrics import Metric, Statistics
from onestep.metrics._features import device_record
from onestep.results import Results

# Mean and covariance of pooled features (EDM, ADM, clean-fid), of spatial ones (ADM), and of those of DINOv2 (EDM2).
_STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"), ("mu_dinov2", "sigma_dinov2"))
# The record of features: what they are of and how they were made.
_ABOUT = {
    **dict.fromkeys(("weights_sha256", "pixels_sha256"), str),
    "images": int,
    "subject?": {str: str},
    "archive_sha256?": str,
    "network?": (dict, None),
    "features?": (str, None),
    **dict.fromkeys(("arithmetic?", "sampled?"), ARITHMETIC),
}
_SUBJECTS = ({"model", "sampler", "seeds"}, {"dataset"}, {"input"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real features [M, D] or their statistics. Values with different `facts`, which are recorded, are not compared.

    `arithmetic` is the record of how the features were computed; empty for none.
    """

    real: np.ndarray | Statistics
    facts: Mapping[str, Any]
    arithmetic: Mapping[str, str] = field(default_factory=dict)


class Block:
    """The files of one block of images and of its references, each read and checked once."""

    def __init__(self) -> None:
        self._features: dict[Path, Arrays] = {}
        self._pixels: dict[Path, tuple[np.ndarray, str]] = {}
        self._archives: dict[Path, dict[str, np.ndarray] | None] = {}

    def features(self, path: Path) -> Arrays:
        """Return a file of `onestep extract`, with arrays that the caller may change."""
        if path not in self._features:
            self._features[path] = _read_features(path)
        found = self._features[path]
        return Arrays({name: array.copy() for name, array in found.arrays.items()}, found.about)

    def pixels(self, path: Path) -> tuple[np.ndarray, str]:
        """Return images, uint8 [N, C, H, W], that the caller may change, and their digest."""
        if path not in self._pixels:
            pixels = read_pixels(path)
            self._pixels[path] = pixels, _digest(pixels)
        pixels, digest = self._pixels[path]
        return pixels.copy(), digest

    def statistics(self, path: Path) -> dict[str, np.ndarray] | None:
        """Return published statistics by their names; None for a file of features."""
        if path not in self._archives:
            if path.suffix == ".pkl":
                self._archives[path] = read_statistics_pickle(path)
            else:
                names = [name for names in _STATISTICS for name in names]
                self._archives[path] = published_arrays(checked(path), names)
        found = self._archives[path]
        return None if found is None else {name: array.copy() for name, array in found.items()}


def write_measurement(
    metric: Metric,
    *,
    name: str,
    options: Mapping[str, Any],
    generated: Path | None = None,
    real: Path | None = None,
    real_input: str | None = None,
    pixels: Path | None = None,
    real_pixels: Path | None = None,
    output: Path,
    block: Block | None = None,
) -> None:
    """Measure one block of images; a reference is recorded where `real` or `real_pixels` is given.

    `generated` has features of the measured images, and `real` those of real images, of generated ones of another
    model, or published statistics, from the input `real_input`. `pixels` are the measured images; `real_pixels` real
    ones, a dataset archive or .npz. What other metrics have read is in `block`.

    ValueError: The files were made with different feature networks or from different images, lack an input of the
    metric, or do not contain the identity of their images.
    """
    check_files(generated, real, pixels, real_pixels)
    block = block or Block()
    extracted = Arrays({}, {}) if generated is None else block.features(generated)
    images, pixels_digest = (None, "") if pixels is None else block.pixels(pixels)
    about = extracted.about
    if generated is None and images is None:
        raise ValueError("measure: got no images, expected --generated or --pixels")
    digest, count = (about["pixels_sha256"], about["images"]) if images is None else (pixels_digest, len(images))
    if generated is not None and digest != about["pixels_sha256"]:
        raise ValueError(f"{pixels}: got other images than those of {generated}. Fix: make both again")
    subject = about.get("subject", {}) if pixels is None or generated is not None else subject_of(pixels)
    check_subject(subject, path=generated or pixels)
    available, facts = inputs_of(extracted.arrays), dict[str, Any]()
    sampled = about.get("sampled") if pixels is None or generated is not None else sampled_by(pixels)
    arithmetic = {"images": sampled, "features": about.get("arithmetic")}
    if real is not None:
        if generated is None:
            raise ValueError(f"{real}: got a reference without features, expected --generated as well")
        reference = read_reference(
            real,
            width=features_of(extracted, path=generated).shape[1],
            weights_sha256=about["weights_sha256"],
            precision=precision_of(about),
            takes_statistics=metric.takes_statistics,
            input_name=real_input,
            block=block,
        )
        if not reference.facts.keys() & {"dataset", "input", "file", "model"}:
            raise ValueError(f"{real}: got no name of a dataset, input or model, expected one. Fix: extract it again")
        available["real"], facts = reference.real, dict(reference.facts)
        arithmetic["reference"] = reference.arithmetic
    if images is not None:
        available["pixels"] = images
    if real_pixels is not None and "real_pixels" in metric.inputs:
        available["real_pixels"], facts["real_pixels_sha256"] = block.pixels(real_pixels)
    known = {key: dict(record) for key, record in arithmetic.items() if record}
    try:
        values = call_metric(metric, name=name, available=available)
    except ValueError as error:
        against = real or real_pixels
        raise ValueError(f"{generated or pixels}{f' against {against}' if against else ''}: {error}") from error
    write_json(
        output,
        sealed(
            {
                **subject,
                "images": count,
                "metric": name,
                "values": values,
                "features": about.get("features"),
                "feature_weights_sha256": about.get("weights_sha256"),
                "precision": precision_of(about),
                "reference": facts or None,
                "options": dict(options),
                "better": dict(metric.values),
                "feature_network": about.get("network"),
                "pixels_sha256": digest,
                **({"arithmetic": known} if known else {}),
                **device_of(metric, available),
            }
        ),
    )


def check_subject(subject: Mapping[str, str], *, path: Path | None) -> None:
    """Raise ValueError if a file does not name which images it is of."""
    if set(subject) not in _SUBJECTS:
        raise ValueError(
            f"{path}: got no identity of its images, expected model, sampler and seeds, or a dataset. "
            "Fix: delete the file and make it again"
        )


def check_files(*paths: Path | None) -> None:
    """Check all files before any is read."""
    for path in filter(None, paths):
        regular_file(path)


def call_metric(metric: Metric, *, name: str, available: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a metric, called with the inputs that it declares. ValueError: One is missing or refused."""
    missing = [each for each in metric.inputs if each not in available]
    if missing:
        has = ", ".join(available) or "none"
        raise ValueError(f"metric {name!r}: got the inputs {has}, expected {', '.join(missing)} as well")
    found = metric(**{each: available[each] for each in metric.inputs})
    values = {key: float(value) for key, value in found.items()}
    if broken := [f"{key} {value}" for key, value in values.items() if not math.isfinite(value)]:
        raise ValueError(f"metric {name!r}: got {', '.join(broken)}, expected finite numbers. Fix: check the images")
    return values


def device_of(metric: Metric, available: Mapping[str, Any]) -> dict[str, str]:
    """Return the GPU on which a metric of this package computes from these inputs, as `device`; of a CPU nothing."""
    inputs = [available[each] for each in ("generated", "real", "probabilities") if each in metric.inputs]
    return device_record(*inputs) if inputs and type(metric).__module__.startswith("onestep.") else {}


def inputs_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the arrays of a feature network by the names that they have as inputs of metrics."""
    names = {"features": "generated", "probabilities": "probabilities"}
    return {names[name]: array for name, array in arrays.items() if name in names}


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def read_reference(
    path: Path,
    *,
    width: int,
    weights_sha256: str,
    precision: str = "float32",
    takes_statistics: bool,
    input_name: str | None = None,
    block: Block | None = None,
) -> Reference:
    """Read features from `onestep extract`, or published statistics, which do not show the weights of their network.

    `width`, `weights_sha256` and `precision` are those of the generated features. The name of the file is recorded
    where there is no `input_name`. ValueError: The file is damaged, was made with other weights or another precision,
    or does not fit.
    """
    block = block or Block()
    found = block.statistics(path)
    if found is None:
        source = block.features(path)
        if source.about["weights_sha256"] != weights_sha256:
            raise ValueError(f"{path}: got features of different weights of the feature network. Fix: extract it again")
        if (found_precision := precision_of(source.about)) != precision:
            found_and_expected = f"got features in {found_precision}, expected {precision} as of the generated images"
            raise ValueError(f"{path}: {found_and_expected}. Fix: extract both with one precision")
        facts = {"images": source.about["images"], "sha256": source.about["pixels_sha256"]}
        facts = source.about.get("subject", {}) | facts
        arithmetic = source.about.get("arithmetic", {})
        return Reference(real=features_of(source, path=path), facts=facts, arithmetic=arithmetic)
    if not takes_statistics:
        raise ValueError(f"{path}: got statistics, expected features. Fix: use a reference with images")
    names, statistics = _fitting(found, path=path, width=width)
    origin = {"file": path.name} if input_name is None else {"input": input_name}
    facts = {**origin, "statistics": ", ".join(names), "sha256": known_digest(path)}
    return Reference(real=statistics, facts=facts)


def precision_of(about: Mapping[str, Any]) -> str:
    """Return the arithmetic of features by their record."""
    return str((about.get("network") or {}).get("precision", "float32"))


def _read_features(path: Path) -> Arrays:
    """Read a file of `onestep extract`. ValueError: It is damaged, lacks a part of its identity, or is misplaced."""
    source = read_arrays(path, about=_ABOUT)
    check_place(path, source.about.get("subject", {}))
    _check_archive(path, source.about)
    for name, array in source.arrays.items():
        if array.ndim != 2 or array.dtype != np.float32 or len(array) != source.about["images"]:
            expected = f"float32 [{source.about['images']}, width]"
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{path}: {name}: got {found}, expected {expected}. Fix: extract it again")
    return source


def _check_archive(path: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError if the features in a results folder are not those of the dataset's archive there."""
    name, recorded = about.get("subject", {}).get("dataset"), about.get("archive_sha256")
    archive = Results(path.parent.parent).data(name) if name else path
    if recorded and path.parent.name == "features" and archive.with_suffix(".json").exists():
        found = digest_of(archive)
        if found != recorded:
            problem = f"{path}: got features of an archive with the SHA-256 {recorded}, expected {found} of {archive}"
            raise ValueError(f"{problem}. Fix: delete it and extract it again")


def features_of(source: Arrays, *, path: Path) -> np.ndarray:
    """Return the features in a file, [N, D]. ValueError: It has none."""
    if "features" not in source.arrays:
        raise ValueError(f"{path}: features: got none, expected an array as `onestep extract` writes it")
    return source.arrays["features"]


def _fitting(found: Mapping[str, np.ndarray], *, path: Path, width: int) -> tuple[tuple[str, str], Statistics]:
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
