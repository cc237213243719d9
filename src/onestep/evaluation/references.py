"""References: extracted features of real images, or published statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onestep.archive import Arrays, published_arrays, read_arrays
from onestep.files import sha256_of_file
from onestep.metrics import Statistics

# Mean and covariance of pooled features (EDM, ADM, clean-fid) and of spatial ones (ADM).
_STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real features [M, D] or their statistics. Values with different `facts`, which are recorded, are not compared."""

    real: np.ndarray | Statistics
    facts: Mapping[str, Any]


def read_reference(
    path: Path, *, width: int, weights_sha256: str, takes_statistics: bool, input_name: str | None = None
) -> Reference:
    """Read features from `onestep extract`, or published statistics, which do not show the weights of their network.

    Args:
        path: The file.
        width: Width of the generated features.
        weights_sha256: Digest of the weights of their feature network.
        takes_statistics: Whether the metric accepts statistics.
        input_name: Name of the input that the statistics come from; the file name where it is None.

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
    """Return the mean and covariance of the width of the generated features, and their names."""
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
