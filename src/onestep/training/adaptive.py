"""Adaptive parameters of a run, which follow what its phases observe, such as the probability of ADA.

A parameter is a number, or several that are updated together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from onestep import distributed
from onestep.distributed import Ranks
from onestep.objectives import Phase
from onestep.training.step import PhaseReport

Value: TypeAlias = float | tuple[float, ...]


class AdaptiveParameters:
    """The adaptive parameters of a run, such as ADA's probability, and their observations since the last update.

    Observations are averaged over ranks, so that values and state are equal on all of them.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._controls = [(phase.name, control) for phase in phases for control in phase.controls]
        self._states = {control.name: _unobserved(control.start) for _, control in self._controls}
        if len(self._states) < len(self._controls):
            names = [control.name for _, control in self._controls]
            raise ValueError(f"controls: got {names}, expected distinct names")

    def values(self) -> Mapping[str, Value]:
        """Return the current values by name."""
        return MappingProxyType({name: state["value"] for name, state in self._states.items()})

    def numbers(self) -> Mapping[str, float]:
        """Return those that are one number, for the log."""
        return {name: value for name, value in self.values().items() if not isinstance(value, tuple)}

    def observe(self, reports: Sequence[PhaseReport], *, images: int, ranks: Ranks) -> None:
        """Add the reports of one step of `images` images and update what is due; every rank must call this."""
        observed = {report.name: report.observed for report in reports}
        for phase, control in self._controls:
            if phase not in observed:
                continue
            state = self._states[control.name]
            mean = observed[phase][control.observes].detach().to(torch.float64, copy=True)
            total = torch.as_tensor(state["sum"], dtype=torch.float64, device=mean.device)
            state["sum"] = total + distributed.average(mean, ranks=ranks)
            state["steps"] += 1
            state["images"] += images
            if state["steps"] >= control.every:
                mean_of_steps = _plain(state["sum"] / state["steps"])
                value = control.rule(state["value"], mean=mean_of_steps, images=state["images"])
                self._states[control.name] = _unobserved(value)

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the exact state as JSON values."""
        return {name: state | {"sum": _plain(state["sum"])} for name, state in self._states.items()}

    def restore(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore the result of `state`.

        Raises:
            ValueError: The names differ from the run's own.
        """
        if set(states) != set(self._states):
            raise ValueError(f"state: got controls {sorted(states)}, expected {sorted(self._states)} of this run")
        self._states = {name: own | dict(states[name]) for name, own in self._states.items()}
        for state in self._states.values():
            state["value"] = _value(state["value"])


def _unobserved(value: Any) -> dict[str, Any]:
    return {"value": _value(value), "sum": 0.0, "steps": 0, "images": 0}


def _value(value: Any) -> Value:
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else float(value)


def _plain(value: Tensor | float) -> Any:
    """Return a number, or a list of them, as JSON has it."""
    return value.cpu().tolist() if isinstance(value, Tensor) else value
