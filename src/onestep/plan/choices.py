"""Which snapshots are chosen by their numbers."""

from __future__ import annotations

from typing import Any

from onestep import components
from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.models import parse_model
from onestep.plan.numbers import Numbers
from onestep.plan.paths import weights
from onestep.plan.snapshots import Snapshots


class Choices:
    """Models `{run}@best-...`.

    Args:
        experiment: The config.
        snapshots: The candidates.
        numbers: What is measured of them.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self, experiment: Experiment, *, snapshots: Snapshots, numbers: Numbers, fingerprints: Fingerprints
    ) -> None:
        self._experiment, self._snapshots = experiment, snapshots
        self._numbers, self._fingerprints = numbers, fingerprints

    def snapshots(self, wildcards: Any) -> list[str]:
        """The networks among which one is chosen."""
        return [weights(candidate) for candidate in self._snapshots.candidates(parse_model(wildcards.model))]

    def measurements(self, wildcards: Any) -> list[str]:
        """The numbers by which it is chosen."""
        return [number.path for number in self._numbers.of_candidates(parse_model(wildcards.model))]

    def options(self, wildcards: Any) -> str:
        """The number, which direction of it is better, and the counts of images that name the snapshots."""
        model = parse_model(wildcards.model)
        metric, value = self._experiment.metrics[model.choice.metric].name, model.choice.value
        return canonical_json(
            {
                "model": str(model),
                "direction": components.outline("metrics", metric).values[value],
                "images": [candidate.images for candidate in self._snapshots.candidates(model)],
            }
        )

    def code(self, wildcards: Any) -> str:
        """Fingerprint of the choice."""
        return self._fingerprints.fingerprint("onestep.cli:select")
