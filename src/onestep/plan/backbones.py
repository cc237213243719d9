"""What discriminators look through."""

from __future__ import annotations

from onestep.config.sections import Experiment
from onestep.plan.inputs import Inputs
from onestep.plan.snapshots import Snapshots


class Backbones:
    """The section `backbones`.

    Args:
        experiment: The config.
        inputs: The weights of published ones.
        snapshots: The weights of those that this config trains.
    """

    def __init__(self, experiment: Experiment, *, inputs: Inputs, snapshots: Snapshots) -> None:
        self._experiment, self._inputs, self._snapshots = experiment, inputs, snapshots

    def weights(self, name: str) -> str:
        """Return the network of a backbone."""
        backbone = self._experiment.backbones[name]
        return self._snapshots.last(backbone.run) if backbone.run is not None else self._inputs.path(backbone.input)
