"""What numbers of generated images are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onestep import components
from onestep.config.sections import Experiment
from onestep.plan.inputs import Inputs
from onestep.plan.paths import RESULTS


class References:
    """The real side of the numbers: a dataset's own features, and the references that it names for metrics.

    Args:
        experiment: The config.
        inputs: The published references.
    """

    def __init__(self, experiment: Experiment, *, inputs: Inputs) -> None:
        self._experiment, self._inputs = experiment, inputs

    def own(self, wildcards: Any) -> str:
        """A dataset's own features that a metric looks at."""
        return self.own_of(wildcards.dataset, metric=wildcards.metric)

    def own_of(self, dataset: str, *, metric: str) -> str:
        """Return a dataset's own features that a metric looks at."""
        return f"{RESULTS}/features/{dataset}.{self._experiment.metrics[metric].features}.npz"

    def published(self, wildcards: Any) -> str:
        """The published reference of a dataset for a metric.

        Raises:
            ValueError: It has none.
        """
        reference = self.published_of(wildcards.dataset, metric=wildcards.metric)
        if reference is None:
            raise ValueError(f"datasets.{wildcards.dataset}.references: names no reference for {wildcards.metric}")
        return reference

    def published_of(self, dataset: str, *, metric: str) -> str | None:
        """Return published statistics as they are, or the features of published images, where a metric needs those."""
        source = self._experiment.datasets[dataset].references.get(metric)
        if source is None:
            return None
        chosen = self._experiment.metrics[metric]
        if components.outline("metrics", chosen.name).takes_statistics:
            return self._inputs.path(source)
        return f"{RESULTS}/features/reference/{source}.{chosen.features}.npz"

    def named(self, dataset: str, *, metric: str, paths: Sequence[str]) -> str:
        """Return the options of `onestep measure` that name a reference."""
        source = self._experiment.datasets[dataset].references.get(metric)
        return " ".join([*(f"--real {path}" for path in paths), *([f"--real-input {source}"] if source else [])])

    def images(self, wildcards: Any) -> str:
        """An input with real images that others compare with."""
        return self._inputs.path(wildcards.input)
