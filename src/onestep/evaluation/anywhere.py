"""Images from anywhere against a reference from anywhere: features of both, metrics of these, one JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onestep.archive import published_arrays
from onestep.evaluation.extraction import FeatureNetwork, Passed, pass_through
from onestep.evaluation.given_images import given_images
from onestep.evaluation.measurement import refuse_other_weights
from onestep.evaluation.references import Reference, read_reference
from onestep.files import sha256_of_file, write_json
from onestep.metrics import Metric

_STATISTICS = frozenset({"mu", "mu_s"})
_IMAGES = frozenset({"arr_0", "pixels"})


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedMetric:
    """A metric, and the config block that names it."""

    metric: Metric
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its file in metrics/."""
        return self.options["name"]

    @property
    def wants_reference(self) -> bool:
        """Whether it compares with real images."""
        return "real" in self.metric.compares


def write_evaluation(
    network: FeatureNetwork, metrics: Sequence[NamedMetric], *, images: Path, reference: Path | None, output: Path
) -> dict[str, float]:
    """Measure images, write what was found, and return the numbers.

    Args:
        network: What generated and real images are looked at with.
        metrics: Each once.
        images: What `given_images` reads.
        reference: The same, or features that `onestep extract` has written, or published statistics (.npz with `mu`
            and `sigma`); where a file holds both images and statistics, each metric takes what it can do with. None
            where no metric compares.
        output: The JSON to write.

    Raises:
        ValueError: Images, reference and metrics do not belong together.
    """
    _check(metrics, reference=reference)
    weights = sha256_of_file(network.weights)
    passed = _passed(network, images)
    real = None if reference is None else _Real(reference, network=network, weights=weights, width=_width(passed))
    values: dict[str, float] = {}
    facts = {}
    for chosen in metrics:
        compared = real.of(chosen.metric) if real is not None and chosen.wants_reference else None
        if compared is not None:
            refuse_other_weights(weights, compared.weights_sha256, generated=images, real=real.path)
            facts[chosen.name] = dict(compared.facts)
        values |= _values(chosen, passed, real=compared, images=images)
    found = {
        "source": str(images),
        "images": passed.images,
        "pixels_sha256": passed.pixels_sha256,
        "metric": [dict(chosen.options) for chosen in metrics],
        "values": values,
        "features": dict(network.options),
        "feature_weights_sha256": weights,
        "precision": network.options.get("precision", "float32"),
        "reference": facts,
    }
    write_json(output, found)
    return values


def _check(metrics: Sequence[NamedMetric], *, reference: Path | None) -> None:
    """Refuse what can be seen to be wrong before any image is read."""
    names = [chosen.name for chosen in metrics]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"found the metrics {', '.join(names) or 'none'}; expected at least one, and each once")
    lone = [chosen.name for chosen in metrics if chosen.wants_reference]
    if reference is None and lone:
        raise ValueError(f"metric {lone[0]} compares with real images; name them, or their statistics, by --reference")


def _passed(network: FeatureNetwork, images: Path) -> Passed:
    try:
        return pass_through([network.extractor], given_images(images))
    except ValueError as error:
        raise _naming(images, error) from error


def _width(passed: Passed) -> int:
    return passed.arrays[0]["features"].shape[1]


def _values(chosen: NamedMetric, passed: Passed, *, real: Reference | None, images: Path) -> dict[str, float]:
    """Return the numbers of one metric."""
    (arrays,) = passed.arrays
    available = {
        "generated": arrays["features"],
        "real": None if real is None else real.real,
        "probabilities": arrays.get("probabilities"),
    }
    if "probabilities" in chosen.metric.compares and available["probabilities"] is None:
        raise ValueError(f"metric {chosen.name} needs class probabilities, and this feature network has none")
    try:
        found = chosen.metric(**{role: available[role] for role in chosen.metric.compares})
    except ValueError as error:
        raise _naming(images, error) from error
    return {name: float(value) for name, value in found.items()}


def _naming(path: Path, error: ValueError) -> ValueError:
    """Return an error that says which file it is about."""
    text = str(error)
    return ValueError(text if text.startswith(str(path)) else f"{path}: {text}")


class _Real:
    """A reference; its images, where a metric needs them, pass through the network once."""

    def __init__(self, path: Path, *, network: FeatureNetwork, weights: str, width: int) -> None:
        self.path, self._network, self._weights, self._width = path, network, weights, width

    def of(self, metric: Metric) -> Reference:
        """Return what the metric compares with."""
        statistics = metric.takes_statistics and bool(self._arrays & _STATISTICS)
        if self._arrays and (statistics or not self._arrays & _IMAGES):
            found = read_reference(self.path, width=self._width, takes_statistics=metric.takes_statistics)
            facts = {key: value for key, value in found.facts.items() if key != "input"}
            return Reference(real=found.real, weights_sha256=found.weights_sha256, facts=self._named | facts)
        return self._features

    @property
    def _named(self) -> dict[str, str]:
        return {"file": self.path.name}

    @cached_property
    def _arrays(self) -> frozenset[str]:
        """What an .npz holds, by name; nothing for a file of another kind."""
        if self.path.suffix != ".npz":
            return frozenset()
        published_arrays(self.path, ())  # which says what is wrong with a damaged one
        with np.load(self.path, allow_pickle=False) as archive:
            return frozenset(archive.files)

    @cached_property
    def _features(self) -> Reference:
        passed = _passed(self._network, self.path)
        facts = {**self._named, "images": passed.images, "sha256": passed.pixels_sha256}
        return Reference(real=passed.arrays[0]["features"], weights_sha256=self._weights, facts=facts)
