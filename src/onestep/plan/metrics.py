"""The numbers: a metric of a block of generated images, and what it compares them with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep import components
from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.models import parse_model
from onestep.plan.options import own_options
from onestep.plan.paths import RESULTS
from onestep.plan.references import References


class Metrics:
    """The section `metrics`.

    Args:
        experiment: The config.
        blocks: The section as a document.
        references: What generated images are compared with.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self, experiment: Experiment, *, blocks: Mapping[str, Any], references: References, fingerprints: Fingerprints
    ) -> None:
        self._experiment, self._blocks = experiment, blocks
        self._references, self._fingerprints = references, fingerprints

    def generated(self, wildcards: Any) -> str:
        """The features a metric looks at."""
        features = self._experiment.metrics[wildcards.metric].features
        return f"{RESULTS}/features/{wildcards.model}/{wildcards.sampler}/{wildcards.seeds}.{features}.npz"

    def real(self, wildcards: Any) -> list[str]:
        """The published reference of the dataset for the metric, or else the features of the dataset's images.

        None for a metric of generated images on a dataset with published references, whose images may be missing.
        """
        dataset, name = self._dataset_of(wildcards.model), wildcards.metric
        metric = components.outline("metrics", self._experiment.metrics[name].name)
        if "real" not in metric.inputs and self._experiment.datasets[dataset].references:
            return []
        return [self._references.published_of(dataset, metric=name) or self._references.own_of(dataset, metric=name)]

    def reference(self, wildcards: Any, input: Any) -> str:
        """The options that name the reference."""
        return self._references.named(self._dataset_of(wildcards.model), metric=wildcards.metric, paths=input.real)

    def _dataset_of(self, model: str) -> str:
        name = parse_model(model).name
        if name in self._experiment.runs:
            return self._experiment.runs[name].dataset
        return next(
            table.dataset_of(row)
            for table in self._experiment.tables.values()
            for row in table.rows
            if row.teacher == name
        )

    def options(self, wildcards: Any) -> str:
        """The metric and its options."""
        return canonical_json(own_options(self._blocks[wildcards.metric]))

    def code(self, wildcards: Any) -> str:
        """Fingerprint of the metric."""
        metric = f"onestep.metrics.{self._experiment.metrics[wildcards.metric].name}"
        return self._fingerprints.fingerprint("onestep.cli:measure", plugins=[metric])
