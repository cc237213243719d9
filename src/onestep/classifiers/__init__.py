"""Contract of classifiers, which serve as backbones of discriminators and as feature extractors, and their builder.

Legend: B images, C H W an image, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from onestep import components
from onestep.checkpoints.snapshot import read_snapshot


class Prediction(NamedTuple):
    """Output of a classifier."""

    logits: Tensor  # [B, K], before the softmax
    features: Tensor  # [B, D], pooled, the layer below the logits
    taps: tuple[Tensor, Tensor, Tensor, Tensor]  # [B, C_i, H_i, W_i], fine to coarse, each half the size of the last


class Classifier(Protocol):
    """A class of this folder: an `nn.Module`."""

    tap_channels: tuple[int, int, int, int]  # from fine to coarse
    feature_width: int  # D

    def forward(self, images: Tensor) -> Prediction:
        """Classify images [B, C, H, W] in [-1, 1]."""
        ...


def build_classifier(config: Mapping[str, Any]) -> nn.Module:
    """Build a classifier with random weights from its config: `{name: convnet, resolution, channels, classes, ...}`.

    ValueError: there is no such classifier, or an option is not among its choices.
    """
    return components.build("classifiers", config)


def load_classifier(path: Path) -> tuple[nn.Module, Mapping[str, Any]]:
    """Load the classifier of a snapshot, and its config; ValueError: the file is not the snapshot of one."""
    snapshot = read_snapshot(path)
    classifier = build_classifier(snapshot.config)
    classifier.load_state_dict(snapshot.state_dict)
    return classifier, snapshot.config
