"""The contract of a classifier: what the demo trains for its discriminator's features and for its metric.

It stands below the families, because a discriminator and a feature extractor may both hold one.
Legend: B images, C H W an image, K classes, D feature width.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from onestep import plugins


class Prediction(NamedTuple):
    """What a classifier says of a batch.

    Attributes:
        logits: [B, K], before the softmax.
        features: [B, D], pooled, the layer below the logits.
        taps: Four feature maps [B, C_i, H_i, W_i] from fine to coarse, each half the size of the one before.
    """

    logits: Tensor
    features: Tensor
    taps: tuple[Tensor, Tensor, Tensor, Tensor]


class Classifier(Protocol):
    """What the files of this folder hold, as `nn.Module`s.

    Attributes:
        tap_channels: Channels of the four taps, fine to coarse.
        feature_width: D.
    """

    tap_channels: tuple[int, int, int, int]
    feature_width: int

    def forward(self, images: Tensor) -> Prediction:
        """Classify images [B, C, H, W] in [-1, 1]."""
        ...


def build_classifier(config: dict[str, Any]) -> nn.Module:
    """Build the classifier a config describes: `{name: convnet, resolution, channels, classes, ...}`."""
    options = {key: value for key, value in config.items() if key != "name"}
    return plugins.load("classifiers", config["name"])(**options)
