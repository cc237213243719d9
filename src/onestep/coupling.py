"""Losses that couple all images of a step, such as a Frechet distance: a mean over parts of them is another loss.

Legend: B images of a micro-batch, N of a step over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeAlias

from torch import Tensor

Vectors: TypeAlias = Mapping[str, Tensor]
"""Features of images by name: of a micro-batch [B, ...], or of a whole step [N, ...]."""


class Collect(Protocol):
    """Calls a function on images of the dataset, and returns its results for all of them in one order.

    The images are in an order that the run's seed draws, again from the first after the last; their random numbers
    are their own, named by `stream`. Networks are in evaluation mode, and nothing has a gradient. The result is on the
    device, the same on all ranks, and does not depend on their number.
    """

    def __call__(self, function: Callable[[Mapping[str, Any], Any], Vectors], *, images: int, stream: str) -> Vectors:
        """Return `function(networks, batch)` of so many images, [images, ...] by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the state of a coupled loss is made of, before the first step of a run.

    Attributes:
        images: Number of images of the dataset.
        batch: Images of a step, over all ranks.
    """

    images: int
    batch: int
    collect: Collect


@dataclass(frozen=True, kw_only=True)
class CoupledLoss:
    """A scalar to minimize, values to log, and new values of the state by name; what it does not name stays."""

    value: Tensor
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Coupled:
    """The loss of a phase as a function of the features of all images of a step.

    Training computes the features of all images first, then on each rank the same loss and its gradient with respect to
    them, and sends that back through features which are computed again with the same random numbers, unless one pass
    has all images. So the gradient depends on neither the micro-batch nor the number of ranks.

    Attributes:
        features: `features(networks, batch)` of the images of a micro-batch, differentiable; an image's do not depend
            on those beside it.
        loss: `loss(features, state)`, with the features in the order of images. It draws no random numbers.
        start: Makes the state: tensors by name, which are part of the training state and equal on all ranks. A step
            whose features are not finite does not change them.
    """

    features: Callable[[Mapping[str, Any], Any], Vectors]
    loss: Callable[[Vectors, Mapping[str, Tensor]], CoupledLoss]
    start: Callable[[Start], Mapping[str, Tensor]]


def no_loss_of_a_part(*_: object) -> NoReturn:
    """Raise ValueError: the loss of a micro-batch in a phase with a coupled loss, which has none."""
    raise ValueError("loss: got a micro-batch, expected all images of a step for a coupled loss")
