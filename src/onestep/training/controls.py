"""The numbers that an objective steers while a run trains: kept, fed with means over ranks, changed by its rule."""

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


class Controls:
    """The steered numbers of one run, the same on all ranks, and what was observed since each last changed."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        steered = [(phase.name, control) for phase in phases for control in phase.controls]
        self._steered = {control.name: _Steered(control, phase=phase) for phase, control in steered}
        if len(self._steered) < len(steered):
            raise ValueError(f"two controls of one name among {[control.name for _, control in steered]}")

    def values(self) -> Mapping[str, float]:
        """Return what the numbers are now, by name."""
        return MappingProxyType({name: steered.value for name, steered in self._steered.items()})

    def observe(self, reports: Sequence[PhaseReport], *, images: int, ranks: Ranks) -> None:
        """Take in the reports of one step of `images` rows over all ranks, and change what is due.

        Every rank must call this: what ranks observed is averaged.
        """
        for report in reports:
            for steered in self._steered.values():
                if steered.phase == report.name:
                    steered.observe(report.observed, images=images, ranks=ranks)

    def state(self) -> dict[str, dict[str, Any]]:
        """Return all that a resumed run needs, as JSON keeps it, to the bit."""
        return {name: steered.state() for name, steered in self._steered.items()}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Put back what `state` returned.

        Raises:
            ValueError: The names are not those of the run's own numbers.
        """
        if set(state) != set(self._steered):
            raise ValueError(
                f"the state steers {sorted(state) or 'nothing'}, the run {sorted(self._steered) or 'nothing'}; "
                "resume with the configuration that the run began with"
            )
        for name, steered in self._steered.items():
            steered.restore(state[name])


class _Steered:
    """One number, and the sum of what was observed since it last changed.

    The sum is of means over ranks, so it is the same on all of them, and a state of one is a state of all.
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
            self._change()

    def _change(self) -> None:
        mean = float(self._sum) / self._steps
        self.value = float(self._control.rule(self.value, mean=mean, images=self._images))
        self._sum, self._steps, self._images = 0.0, 0, 0

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "sum": float(self._sum), "steps": self._steps, "images": self._images}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.value, self._sum = float(state["value"]), float(state["sum"])
        self._steps, self._images = state["steps"], state["images"]
