"""Softmax cross entropy: trains the demo's classifiers, for its discriminator and for its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.config.constraints import Pixels
from onestep.objectives import Batch, Fresh, Loss, Networks, Origin, Phase

__all__ = ["CrossEntropy"]


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Train a classifier on randomly shifted images.

    Attributes:
        shift: Largest shift along each axis, in pixels; border pixels are repeated. 0 is no shift.
    """

    shift: Pixels = 0

    publishes: ClassVar[str] = "classifier"
    samples_in: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift {self.shift}: expected 0 or a positive number of pixels")

    def check_resolution(self, resolution: int) -> None:
        """Check the shift against the images; ValueError: it moves them out of sight."""
        if self.shift >= resolution:
            raise ValueError(f"shift: got {self.shift}, expected less than the images' {resolution} pixels")

    def networks(self) -> Mapping[str, Origin]:
        """Return the classifier, trained from scratch."""
        return {"classifier": Fresh(family="classifiers")}

    def phases(self) -> tuple[Phase, ...]:
        """Return the single phase."""
        return (Phase(name="classifier", trains="classifier", loss=self.classifier_loss),)

    def classifier_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the mean over images of -log p(class).

        Raises:
            ValueError: The run is unconditional.
        """
        if batch.condition is None:
            raise ValueError("cross_entropy: got an unconditional run, expected classes. Fix: conditional: true")
        logits = networks["classifier"](self.shifted(batch)).logits
        hits = logits.argmax(dim=1) == batch.condition.argmax(dim=1)
        return Loss(value=F.cross_entropy(logits, batch.condition), observed={"accuracy": hits.float().mean()})

    def shifted(self, batch: Batch) -> Tensor:
        """Return the images, each shifted down and right by its own integers in [-shift, shift]."""
        span = 2 * self.shift + 1
        offsets = (batch.random.uniform(2) * span).floor().long() - self.shift
        return shift_rows(batch.images, down=offsets[:, 0], right=offsets[:, 1])


def shift_rows(images: Tensor, *, down: Tensor, right: Tensor) -> Tensor:
    """Shift image b of [B, C, H, W] by `down[b]` and `right[b]` pixels; border pixels are repeated."""
    rows, channels, height, width = images.shape

    def index(length: int, offset: Tensor) -> Tensor:
        places = torch.arange(length, device=images.device)
        return (places - offset[:, None]).clamp(0, length - 1)

    b = torch.arange(rows, device=images.device)[:, None, None, None]
    c = torch.arange(channels, device=images.device)[:, None, None]
    return images[b, c, index(height, down)[:, None, :, None], index(width, right)[:, None, None, :]]
