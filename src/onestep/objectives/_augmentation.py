"""Augmentation of images inside an objective, from its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from onestep import components
from onestep.augmentations import Augmentation
from onestep.objectives import Batch, Control

SIGN_OF_REAL_LOGITS = "signs_real"
"""The observation that drives an adaptive probability: the mean sign of the logits of real images, in [-1, 1]."""

_PROBABILITY = "augment_probability"


@runtime_checkable
class _Adaptive(Protocol):
    """An augmentation whose probability may follow the discriminator's logits of real images."""

    probability: float
    target: float | None
    interval: int

    def adapted(self, value: float, *, mean: float, images: int) -> float: ...


def build_pipe(block: Mapping[str, Any]) -> Augmentation:
    """Build an augmentation from its block, such as `{name: edm, probability: 0.12, operations: {xflip: 1.0}}`.

    Raises:
        ValueError: The name or an option is unknown or invalid.
    """
    try:
        return components.build("augmentations", block)
    except (TypeError, ValueError) as error:
        raise ValueError(f"augment: {error}") from error


def pipe_of(block: Mapping[str, Any], *, batch: Batch) -> Augmentation:
    """Build an augmentation with the current probability of the run where that adapts."""
    probability = batch.controls.get(_PROBABILITY)
    return build_pipe(block if probability is None else {**block, "probability": probability})


def probability_controls(block: Mapping[str, Any] | None) -> tuple[Control, ...]:
    """Return the control of an adaptive probability, driven by `SIGN_OF_REAL_LOGITS`; empty if it is constant."""
    pipe = None if block is None else build_pipe(block)
    if not isinstance(pipe, _Adaptive) or pipe.target is None:
        return ()
    control = Control(
        name=_PROBABILITY,
        start=pipe.probability,
        observes=SIGN_OF_REAL_LOGITS,
        every=pipe.interval,
        rule=pipe.adapted,
    )
    return (control,)
