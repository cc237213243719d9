"""The denoisers that runs start from, converted once."""

from __future__ import annotations

from typing import Any

from onestep.config.sections import Experiment
from onestep.fingerprint import Fingerprints
from onestep.plan.inputs import Inputs
from onestep.plan.snapshots import Snapshots


class Teachers:
    """The section `teachers`.

    Args:
        experiment: The config.
        inputs: The published ones.
        snapshots: Those that this config trains.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self, experiment: Experiment, *, inputs: Inputs, snapshots: Snapshots, fingerprints: Fingerprints
    ) -> None:
        self._experiment, self._inputs = experiment, inputs
        self._snapshots, self._fingerprints = snapshots, fingerprints

    def source(self, wildcards: Any) -> str:
        """What a teacher is converted from."""
        teacher = self._experiment.teachers[wildcards.teacher]
        return self._snapshots.last(teacher.run) if teacher.run is not None else self._inputs.path(teacher.pickle)

    def options(self, wildcards: Any) -> str:
        """What is said of a teacher that its file does not say."""
        preconditioning = self._experiment.teachers[wildcards.teacher].preconditioning
        return "" if preconditioning is None else f"--preconditioning {preconditioning}"

    def code(self, wildcards: Any) -> str:
        """Fingerprint of the conversion."""
        return self._fingerprints.fingerprint("onestep.cli:convert")
