"""The contract of an objective: a frozen dataclass of hyperparameters whose methods are the equations.

Legend: B rows of this process, C H W an image, K classes, N logits a row.
`images` are float32 in [-1, 1], shape [B, C, H, W]; `labels` are one-hot float32 [B, K], or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Protocol

from torch import Tensor, nn

Players = Mapping[str, nn.Module]
"""The networks of a run by role: generator, discriminator, classifier, teacher."""


class RowRandom(Protocol):
    """Random numbers of a batch: each row owns a stream, so that a draw does not depend on how rows are split."""

    def normal(self, *shape: int) -> Tensor:
        """Return new standard normal numbers, float32 [B, *shape], on the batch's device."""
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Return new uniform numbers in [0, 1), float32 [B, *shape], on the batch's device."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one phase of one step sees.

    Attributes:
        images: Real images, float32 in [-1, 1], shape [B, C, H, W].
        labels: Their classes, one-hot float32 [B, K]; None when the run is unconditional.
        random: Fresh random streams of this phase, one a row.
        images_seen: Images trained on before this step, over all processes.
        controls: What the numbers that the phases steer (`Phase.controls`) are now, by name.
    """

    images: Tensor
    labels: Tensor | None
    random: RowRandom
    images_seen: int
    controls: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A scalar to descend, and what is worth logging beside it.

    Attributes:
        value: Scalar with a gradient; a mean over the rows of this process (times a scale the config names).
        observed: Detached scalars by name, for the log.
    """

    value: Tensor
    observed: Mapping[str, Tensor] = field(default_factory=dict)


class Rule(Protocol):
    """How a steered number follows what is observed."""

    def __call__(self, value: float, *, mean: float, images: int) -> float:
        """Return the number from now on.

        Args:
            value: Until now.
            mean: What was observed since the last change: the mean over rows, steps and processes.
            images: Real images that it was observed on, over all processes.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Control:
    """A number that is steered while a run trains, by what its own losses observe.

    It is a part of the run's state, the same in all processes, and every phase finds it in its batch.

    Attributes:
        name: Its name in the batch and in the log.
        start: What it is at first.
        observes: The name under which the loss returns what steers it, a mean over rows (`Loss.observed`).
        every: Steps of the phase between two changes.
        rule: How it changes.
    """

    name: str
    start: float
    observes: str
    every: int
    rule: Rule


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimizer step: `loss` trains the network of role `trains`.

    Attributes:
        name: Its name in the log.
        trains: The role whose parameters move; all others are held.
        loss: The equation.
        every: Runs on each `every`-th step, and a lazy phase (`every` > 1) not on step 0.
        second_order: Whether the loss differentiates a gradient. It is then given the networks as they are: in single
            precision, and not compiled, because compiled code has no second derivative.
        gain: Factor on the loss; lazy regularisation multiplies by `every` (StyleGAN2, arXiv:1912.04958, appendix B).
        controls: Numbers that what this phase observes steers.
    """

    name: str
    trains: str
    loss: Callable[[Players, Batch], Loss]
    every: int = 1
    gain: float = 1.0
    controls: tuple[Control, ...] = ()
    second_order: bool = False


class Objective(Protocol):
    """What the files of this folder hold.

    Attributes:
        publishes: The role whose moving average a snapshot holds ("generator" or "classifier").
        needs: The roles that must exist ("generator", "discriminator", ...).
    """

    publishes: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]

    def phases(self) -> tuple[Phase, ...]:
        """Return the optimizer steps in the order they run."""
        ...
