"""A small convolutional classifier, fast on a CPU: the demo's backbone and feature extractor."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from onestep.classifiers import Prediction
from onestep.config.constraints import Constraint

__all__ = ["ConvNet"]

_SMALLEST = 16  # pixels, so that the coarsest tap, an eighth of the resolution, has at least 2x2


class ConvNet(nn.Module):
    """Four stages of two 3x3 convolutions with SiLU, each stage at half the size; mean pooling; a linear layer.

    There is no normalisation: training and evaluation mode are the same function, images do not interact, and every
    tap depends on brightness and contrast, which GroupNorm would remove. SiLU is smooth, so R1 on these features is
    differentiable everywhere.

    Attributes:
        tap_channels: `(width, 2 width, 2 width, 2 width)`, the stages' outputs from fine to coarse.
        feature_width: `2 width`, the mean of the last tap over space.
    """

    def __init__(
        self, *, resolution: int, channels: int, classes: int, width: Annotated[int, Constraint(gt=0, le=4_096)]
    ) -> None:
        """Build with random weights; `resolution` is a power of two from 16 on, `width` that of the finest tap."""
        super().__init__()
        if resolution < _SMALLEST or resolution & (resolution - 1):
            raise ValueError(f"resolution: got {resolution}, expected a power of two from {_SMALLEST} on")
        self.tap_channels = (width, 2 * width, 2 * width, 2 * width)
        self.feature_width = self.tap_channels[-1]
        before = (channels, *self.tap_channels[:-1])
        self.stages = nn.ModuleList(_stage(i, o) for i, o in zip(before, self.tap_channels, strict=True))
        self.classify = nn.Linear(self.feature_width, classes)

    def forward(self, images: Tensor) -> Prediction:
        """Classify images, [B, C, H, W] in [-1, 1]."""
        taps: list[Tensor] = []
        for stage in self.stages:
            taps.append(stage(F.avg_pool2d(taps[-1], 2) if taps else images))
        finest, fine, middle, coarse = taps
        features = coarse.mean(dim=(2, 3))
        return Prediction(logits=self.classify(features), features=features, taps=(finest, fine, middle, coarse))


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    first, second = _convolution(channels_in, channels_out), _convolution(channels_out, channels_out)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU())


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size, initialised as in He et al. (arXiv:1502.01852)."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
