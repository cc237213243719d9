"""The archives that runs learn from and numbers compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.plan.inputs import Inputs
from onestep.plan.options import own_options


class Datasets:
    """The section `datasets`.

    Args:
        experiment: The config.
        blocks: The section as a document.
        inputs: What archives are made from.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self, experiment: Experiment, *, blocks: Mapping[str, Any], inputs: Inputs, fingerprints: Fingerprints
    ) -> None:
        self._experiment, self._blocks = experiment, blocks
        self._inputs, self._fingerprints = inputs, fingerprints

    def source(self, wildcards: Any) -> str:
        """The input a dataset is made from."""
        return self._inputs.path(self._experiment.datasets[wildcards.dataset].input)

    def options(self, wildcards: Any) -> str:
        """The dataset's reader and its options."""
        return canonical_json(own_options(self._blocks[wildcards.dataset]))

    def code(self, wildcards: Any) -> str:
        """Fingerprint of what reads and writes the dataset."""
        reader = f"onestep.data.{self._experiment.datasets[wildcards.dataset].name}"
        return self._fingerprints.fingerprint("onestep.cli:prepare", plugins=[reader])
