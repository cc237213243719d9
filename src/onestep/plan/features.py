"""What feature networks see of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep import components
from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.plan.inputs import Inputs
from onestep.plan.options import own_options
from onestep.plan.snapshots import Snapshots


class Features:
    """The section `features`.

    Args:
        experiment: The config.
        blocks: The section as a document.
        inputs: The weights of published networks.
        snapshots: The weights of those that this config trains.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        blocks: Mapping[str, Any],
        inputs: Inputs,
        snapshots: Snapshots,
        fingerprints: Fingerprints,
    ) -> None:
        self._experiment, self._blocks, self._fingerprints = experiment, blocks, fingerprints
        self._inputs, self._snapshots = inputs, snapshots

    @property
    def kept(self) -> bool:
        """Whether the features of generated images stay when everything is measured."""
        return self._experiment.storage.features == "keep"

    def weights(self, wildcards: Any) -> str:
        """The weights of a feature network."""
        return self.weights_of(wildcards.features)

    def weights_of(self, name: str) -> str:
        """Return the weights of a feature network."""
        extractor = self._experiment.features[name]
        return (
            self._inputs.path(extractor.input) if extractor.input is not None else self._snapshots.last(extractor.run)
        )

    def options(self, wildcards: Any) -> str:
        """The feature network and its options."""
        return canonical_json(self.options_of(wildcards.features))

    def options_of(self, name: str) -> dict[str, Any]:
        """Return a feature network and its options."""
        return own_options(self._blocks[name])

    def code(self, wildcards: Any) -> str:
        """Fingerprint of the feature network."""
        loaded = self.looked_through(wildcards.features)
        return self._fingerprints.fingerprint("onestep.cli:extract", plugins=loaded)

    def looked_through(self, *names: str) -> list[str]:
        """Return the modules that feature networks are loaded from by name."""
        chosen = [f"onestep.features.{self._experiment.features[name].name}" for name in names]
        return [*chosen, *(f"onestep.classifiers.{name}" for name in components.choices("classifiers"))]
