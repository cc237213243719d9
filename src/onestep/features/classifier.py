"""Features of a classifier that this pipeline trained for the purpose, where no published network fits the pictures."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.checkpoints.snapshot import read_snapshot
from onestep.classifiers import build_classifier
from onestep.features import Features

__all__ = ["ClassifierFeatures"]

_ROWS = 100  # rows of every call of the network: one size, so one order of additions, whatever batch was asked for


class ClassifierFeatures:
    """The layer below the logits, and the class probabilities, of a classifier's snapshot."""

    def __init__(self, *, weights: Path) -> None:
        """Read the classifier.

        Args:
            weights: A snapshot that a run with a classifier has written.

        Raises:
            ValueError: The file is not a snapshot, or not one of a classifier.
        """
        snapshot = read_snapshot(weights)
        self._classifier = build_classifier(snapshot.config)
        self._classifier.load_state_dict(snapshot.state_dict)
        self._classifier.eval().requires_grad_(False)
        size = snapshot.config["resolution"]
        self._shape = (snapshot.config["channels"], size, size)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, D] and probabilities [B, K] of pixels, uint8 [B, C, H, W], on the pixels' device.

        Raises:
            ValueError: The pixels are not uint8, or not of the shape that the classifier was trained with.
        """
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != self._shape:
            raise ValueError(
                f"pixels: expected uint8 [B, {', '.join(map(str, self._shape))}], "
                f"found {str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
            )
        self._classifier.to(pixels.device)
        parts = [self._full_call(part) for part in pixels.split(_ROWS)]
        features, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Features(features=features, probabilities=logits.softmax(dim=1))

    def _full_call(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of at most `_ROWS` rows, filled up with black to exactly as many."""
        rows = len(pixels)
        filled = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, _ROWS - rows))
        prediction = self._classifier(filled.to(torch.float32) / 127.5 - 1)
        return prediction.features[:rows], prediction.logits[:rows]
