"""Features of a classifier trained by this package, for images that no published network fits."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.classifiers import load_classifier
from onestep.features import Features

__all__ = ["ClassifierFeatures"]

_ROWS = 100  # images per call of the network: one size, so one order of additions, whatever the batch size


class ClassifierFeatures:
    """The pooled layer below the logits, and the class probabilities, of a classifier's snapshot."""

    def __init__(self, *, weights: Path) -> None:
        """Load the snapshot of a run that trained a classifier."""
        self.network, config = load_classifier(weights)
        self.network.eval().requires_grad_(False)
        self.shape = (config["channels"], config["resolution"], config["resolution"])

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, D] and probabilities [B, K] of pixels, uint8 of the shape of the training images."""
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != self.shape:
            raise ValueError(
                f"pixels: got {str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}, "
                f"expected uint8 [B, {', '.join(map(str, self.shape))}]"
            )
        self.network.to(pixels.device)
        parts = [self._run_padded(part) for part in pixels.split(_ROWS)]
        features, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Features(features=features, probabilities=logits.softmax(dim=1))

    def _run_padded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of at most `_ROWS` images, padded with black images to this number."""
        rows = len(pixels)
        padded = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, _ROWS - rows))
        prediction = self.network(padded.to(torch.float32) / 127.5 - 1)
        return prediction.features[:rows], prediction.logits[:rows]
