"""What generated images are compared with: a dataset's own features, or what others have published of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onestep.archive import Arrays, published_arrays, read_arrays
from onestep.files import sha256_of_file
from onestep.metrics import Statistics

# Mean and covariance of pooled features (EDM, ADM, clean-fid), and of spatial ones (ADM).
_STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The real side of a measurement.

    Attributes:
        real: Features [M, D], or their statistics.
        weights_sha256: Digest of the feature network's weights; None where the publisher does not say.
        facts: What a number's file says of it; numbers with other facts cannot be compared.
    """

    real: np.ndarray | Statistics
    weights_sha256: str | None
    facts: Mapping[str, Any]


def read_reference(path: Path, *, width: int, takes_statistics: bool) -> Reference:
    """Read the reference of a measurement.

    Args:
        path: What `onestep extract` wrote, `.../{dataset}.{features}.npz` or `.../reference/{input}.{features}.npz`;
            or published statistics, `.../{input}/{file}.npz`.
        width: Of the generated features.
        takes_statistics: Whether the metric can do with statistics.

    Raises:
        ValueError: The file is damaged, or does not fit.
    """
    found = published_arrays(path, [name for names in _STATISTICS for name in names])
    if found is None:
        return _extracted(path)
    if not takes_statistics:
        raise ValueError(f"{path}: published statistics, but this metric compares features; extract its images first")
    names, statistics = _fitting(found, path=path, width=width)
    facts = {"input": path.parent.name, "statistics": ", ".join(names), "sha256": sha256_of_file(path)}
    return Reference(real=statistics, weights_sha256=None, facts=facts)


def _extracted(path: Path) -> Reference:
    source = read_arrays(path)
    kind = "input" if path.parent.name == "reference" else "dataset"
    return Reference(
        real=features_of(source, path=path),
        weights_sha256=source.about["weights_sha256"],
        facts={
            kind: path.name.split(".")[0],
            "images": source.about["images"],
            "sha256": source.about["pixels_sha256"],
        },
    )


def features_of(source: Arrays, *, path: Path) -> np.ndarray:
    """Return the features in a file.

    Raises:
        ValueError: It holds none.
    """
    if "features" not in source.arrays:
        raise ValueError(f"{path}: holds no array 'features'; expected what `onestep extract` writes")
    return source.arrays["features"]


def _fitting(found: Mapping[str, np.ndarray], *, path: Path, width: int) -> tuple[tuple[str, str], Statistics]:
    """Return the pair of mean and covariance that is as wide as the generated features, and its names."""
    pairs = [names for names in _STATISTICS if set(names) <= found.keys()]
    if not pairs:
        raise ValueError(f"{path}: holds neither {' nor '.join(' with '.join(names) for names in _STATISTICS)}")
    for mean, covariance in pairs:
        if found[mean].shape == (width,):
            statistics = Statistics(mean=found[mean], covariance=found[covariance])
            _check(statistics, names=(mean, covariance), path=path)
            return (mean, covariance), statistics
    widths = ", ".join(f"{names[0]} {list(found[names[0]].shape)}" for names in pairs)
    raise ValueError(
        f"{path}: statistics of another width than the generated features, {width}: found {widths}; "
        "name the features that they were made of, or another reference"
    )


def _check(statistics: Statistics, *, names: tuple[str, str], path: Path) -> None:
    mean, covariance = statistics.mean, statistics.covariance
    for name, array in zip(names, (mean, covariance), strict=True):
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{path}: {name} is {array.dtype}; expected float64 or float32")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has numbers that are not finite; fetch it again")
    if covariance.shape != 2 * mean.shape:
        raise ValueError(f"{path}: {names[1]} is {list(covariance.shape)}; expected {list(2 * mean.shape)}")
    if not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6 * float(np.abs(covariance).max())):
        raise ValueError(f"{path}: {names[1]} is not symmetric, so it is no covariance; fetch it again")
