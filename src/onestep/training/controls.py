"""Parameters that adapt during training, such as ADA's probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from onestep import distributed
from onestep.distributed import Ranks
from onestep.objectives import Control, Phase
from onestep.training.step import PhaseReport


class AdaptiveParameters:
    """The adaptive parameters of one run, equal on all ranks, and the observations since their last update."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        controls = [(phase.name, control) for phase in phases for control in phase.controls]
        self._adaptive = {control.name: _Adaptive(control, phase=phase) for phase, control in controls}
        if len(self._adaptive) < len(controls):
            raise ValueError(f"controls: got {[control.name for _, control in controls]}, expected distinct names")

    def values(self) -> Mapping[str, float]:
        """Return the current values by name."""
        return MappingProxyType({name: adaptive.value for name, adaptive in self._adaptive.items()})

    def observe(self, reports: Sequence[PhaseReport], *, images: int, ranks: Ranks) -> None:
        """Add the reports of one step of `images` images over all ranks; update what is due.

        Every rank must call this, because observations are averaged over ranks.
        """
        for report in reports:
            for adaptive in self._adaptive.values():
                if adaptive.phase == report.name:
                    adaptive.observe(report.observed, images=images, ranks=ranks)

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the exact state as JSON values."""
        return {name: adaptive.state() for name, adaptive in self._adaptive.items()}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore the result of `state`.

        Raises:
            ValueError: The names differ from the run's own.
        """
        if set(state) != set(self._adaptive):
            raise ValueError(f"state: got controls {sorted(state)}, expected {sorted(self._adaptive)} of this run")
        for name, adaptive in self._adaptive.items():
            adaptive.restore(state[name])


class _Adaptive:
    """One parameter and the sum of its observations since the last update.

    The sum is of means over ranks, so it is equal on all of them and one rank's state is the state of all.
    """

    def __init__(self, control: Control, *, phase: str) -> None:
        self._control, self.phase = control, phase
        self.value = control.start
        self._sum: Tensor | float = 0.0
        self._steps, self._images = 0, 0

    def observe(self, observed: Mapping[str, Tensor], *, images: int, ranks: Ranks) -> None:
        mean = observed[self._control.observes].detach().to(torch.float64, copy=True)
        self._sum = self._sum + distributed.average(mean, ranks=ranks)
        self._steps, self._images = self._steps + 1, self._images + images
        if self._steps >= self._control.every:
            mean_of_steps = float(self._sum) / self._steps
            self.value = float(self._control.rule(self.value, mean=mean_of_steps, images=self._images))
            self._sum, self._steps, self._images = 0.0, 0, 0

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "sum": float(self._sum), "steps": self._steps, "images": self._images}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.value, self._sum = float(state["value"]), float(state["sum"])
        self._steps, self._images = state["steps"], state["images"]
