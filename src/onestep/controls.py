"""Parameters of an objective that adapt during training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Control:
    """A parameter that adapts during training, driven by an observation of its own phase.

    It is part of the training state, equal on all ranks, and available to every phase in its batch.

    Attributes:
        observes: Name of the driving observation, a mean over images (`Loss.observed`); a vector as `start` may be.
        every: Steps of the phase between two updates.
        rule: Returns the new value: `rule(value, mean=..., images=...)`, given the mean observation over the images
            since the last update, over all ranks.
    """

    name: str
    start: float | tuple[float, ...]
    observes: str
    every: int
    rule: Callable[..., float | tuple[float, ...]]
