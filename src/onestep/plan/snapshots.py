"""The networks that runs publish."""

from __future__ import annotations

from onestep.config.sections import Experiment
from onestep.models import Model, Snapshot
from onestep.plan.paths import weights


class Snapshots:
    """Snapshots of the section `runs`.

    Args:
        experiment: The config.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def of(self, run: str) -> list[str]:
        """Return all that a run publishes: of each count of images its main average, then the others."""
        described = self._experiment.runs[run]
        return [
            weights(Snapshot(name=run, images=images, ema=ema))
            for images in described.snapshots
            for ema in (None, *described.ema.others)
        ]

    def last(self, run: str) -> str:
        """Return the one that other runs, teachers and feature networks take."""
        return weights(Snapshot(name=run, images=self._experiment.runs[run].images))

    def candidates(self, model: Model) -> list[Snapshot]:
        """Return the snapshots among which a model is chosen, the earliest first."""
        return [Snapshot(name=model.name, images=n, ema=model.ema) for n in self._experiment.runs[model.name].snapshots]
