"""Images changed at random before a network sees them, where an objective's options say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from onestep import plugins
from onestep.objectives import Batch, Control, RowRandom

SIGN_OF_REAL_LOGITS = "signs_real"
"""What is observed where a pipe is steered: the mean sign of the discriminator's logits of real images, in [-1, 1]."""

_PROBABILITY = "augment_probability"


class _Augmented(Protocol):
    """Changed images [B, C, H, W], and what was done to them [B, L]."""

    images: Tensor
    labels: Tensor


class _Pipe(Protocol):
    """A choice of augmentations/."""

    def __call__(self, images: Tensor, *, generator: RowRandom) -> _Augmented: ...


@runtime_checkable
class _Steerable(Protocol):
    """A choice of augmentations/ whose probability may follow how sure the discriminator is of real images."""

    probability: float
    target: float | None
    interval: int

    def adapted(self, value: float, *, mean: float, images: int) -> float: ...


def build_pipe(block: Mapping[str, Any]) -> _Pipe:
    """Build what `{name: edm, probability: 0.12, operations: {xflip: 1.0}}` describes, a choice of augmentations/.

    Raises:
        ValueError: There is no such choice, or it does not take these options.
    """
    options = {key: value for key, value in block.items() if key != "name"}
    try:
        return plugins.load("augmentations", str(block.get("name")))(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"augment: {error}") from error


def pipe_of(block: Mapping[str, Any], *, batch: Batch) -> _Pipe:
    """Build what a block describes, at the probability to which a batch's run has steered it, if it is steered."""
    probability = batch.controls.get(_PROBABILITY)
    return build_pipe(block if probability is None else {**block, "probability": probability})


def probability_controls(block: Mapping[str, Any] | None) -> tuple[Control, ...]:
    """Return what steers the probability of the pipe that a block describes; nothing where it stays as it is.

    The phase that has it must observe `SIGN_OF_REAL_LOGITS`.
    """
    pipe = None if block is None else build_pipe(block)
    if not isinstance(pipe, _Steerable) or pipe.target is None:
        return ()
    return (
        Control(
            name=_PROBABILITY,
            start=pipe.probability,
            observes=SIGN_OF_REAL_LOGITS,
            every=pipe.interval,
            rule=pipe.adapted,
        ),
    )
