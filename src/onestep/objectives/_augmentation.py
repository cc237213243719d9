"""Augmentation of images inside an objective, from its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from onestep import components
from onestep.augmentations import Augmentation
from onestep.objectives import Batch, Control

SIGN_OF_REAL_LOGITS = "signs_real"
"""The observation that drives an adaptive probability: the mean sign of the logits of real images, in [-1, 1]."""

_PROBABILITY = "augment_probability"


def build_pipe(block: Mapping[str, Any]) -> Augmentation:
    """Build an augmentation from its block, such as `{name: edm, probability: 0.12, operations: {xflip: 1.0}}`.

    Without torch it has its options alone. ValueError: The name or an option is unknown or invalid.
    """
    try:
        return cast(Augmentation, components.build_outline("augmentations", block))
    except (TypeError, ValueError) as error:
        raise ValueError(f"augment: {error}") from error


def pipe_of(block: Mapping[str, Any], *, batch: Batch) -> Augmentation:
    """Build an augmentation with the current probability of the run where that adapts."""
    probability = batch.controls.get(_PROBABILITY)
    return build_pipe(block if probability is None else {**block, "probability": probability})


def probability_controls(block: Mapping[str, Any] | None) -> tuple[Control, ...]:
    """Return the control of an adaptive probability, driven by `SIGN_OF_REAL_LOGITS`; empty if it is constant."""
    pipe: Any = None if block is None else build_pipe(block)
    if not hasattr(pipe, "adapted") or pipe.target is None:
        return ()
    start, every = pipe.probability, pipe.interval
    return (Control(name=_PROBABILITY, start=start, observes=SIGN_OF_REAL_LOGITS, every=every, rule=pipe.adapted),)
