"""Softmax cross entropy: how the demo trains the classifiers it looks through and measures with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.objectives import Batch, Loss, Phase, Players

__all__ = ["CrossEntropy"]


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Classify images that were shifted at random.

    Attributes:
        shift: Largest shift in pixels, each way and in both directions; the border repeats. 0 shifts nothing.
    """

    shift: int

    publishes: ClassVar[str] = "classifier"
    needs: ClassVar[tuple[str, ...]] = ("classifier",)

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift {self.shift}: expected 0 or a positive number of pixels")

    def phases(self) -> tuple[Phase, ...]:
        """Return the one step of the classifier."""
        return (Phase(name="classifier", trains="classifier", loss=self.classifier_loss),)

    def classifier_loss(self, players: Players, batch: Batch) -> Loss:
        """Return the mean over rows of -log p(label).

        Raises:
            ValueError: The run is unconditional, so there are no labels.
        """
        if batch.labels is None:
            raise ValueError("cross_entropy needs labels: set `conditional: true` on this run")
        logits = players["classifier"](self.shifted(batch)).logits
        hits = logits.argmax(dim=1) == batch.labels.argmax(dim=1)
        return Loss(value=F.cross_entropy(logits, batch.labels), observed={"accuracy": hits.float().mean()})

    def shifted(self, batch: Batch) -> Tensor:
        """Return the images, each moved by its own whole number of pixels down and right in [-shift, shift]."""
        span = 2 * self.shift + 1
        offsets = (batch.random.uniform(2) * span).floor().long() - self.shift
        return shift_rows(batch.images, down=offsets[:, 0], right=offsets[:, 1])


def shift_rows(images: Tensor, *, down: Tensor, right: Tensor) -> Tensor:
    """Move row b of images [B, C, H, W] by `down[b]` and `right[b]` pixels, repeating the border."""
    rows, channels, height, width = images.shape

    def index(length: int, offset: Tensor) -> Tensor:
        places = torch.arange(length, device=images.device)
        return (places - offset[:, None]).clamp(0, length - 1)

    b = torch.arange(rows, device=images.device)[:, None, None, None]
    c = torch.arange(channels, device=images.device)[:, None, None]
    return images[b, c, index(height, down)[:, None, :, None], index(width, right)[:, None, None, :]]
