"""A small convolutional classifier of small pictures, quick on a CPU: what the demo looks through and measures with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from onestep.classifiers import Prediction

__all__ = ["ConvNet"]

_SMALLEST = 16  # the coarsest tap is an eighth of the resolution, and a map of less than 2x2 has no pattern left


class ConvNet(nn.Module):
    """Four stages of two 3x3 convolutions, SiLU after each, half the size from stage to stage; mean pool; linear.

    It has no normalisation at all: training and evaluation are then the same function, rows do not see each other,
    and brightness and contrast of an image reach every tap, where GroupNorm would take them out. SiLU is smooth, so
    the gradient penalty of a discriminator that looks through this network has a derivative everywhere.

    Attributes:
        tap_channels: `(width, 2 width, 2 width, 2 width)`: the stages' outputs, fine to coarse.
        feature_width: `2 width`: the last tap's mean over space.
    """

    def __init__(self, *, resolution: int, channels: int, classes: int, width: int) -> None:
        """Build with random weights.

        Args:
            resolution: H and W of the images, a power of two, at least 16.
            channels: C of the images.
            classes: K.
            width: Channels of the finest tap.

        Raises:
            ValueError: The resolution is too small, or no power of two.
        """
        super().__init__()
        if resolution < _SMALLEST or resolution & (resolution - 1):
            raise ValueError(f"resolution {resolution}: ConvNet takes powers of two from {_SMALLEST} on")
        self.tap_channels = (width, 2 * width, 2 * width, 2 * width)
        self.feature_width = self.tap_channels[-1]
        before = (channels, *self.tap_channels[:-1])
        self.stages = nn.ModuleList(_Stage(i, o) for i, o in zip(before, self.tap_channels, strict=True))
        self.classify = nn.Linear(self.feature_width, classes)

    def forward(self, images: Tensor) -> Prediction:
        """Classify images, [B, C, H, W] in [-1, 1]."""
        taps = [self.stages[0](images)]
        for stage in self.stages[1:]:
            taps.append(stage(F.avg_pool2d(taps[-1], 2)))
        features = taps[-1].mean(dim=(2, 3))
        return Prediction(logits=self.classify(features), features=features, taps=tuple(taps))


class _Stage(nn.Sequential):
    """Two 3x3 convolutions at one size."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            _convolution(channels_in, channels_out), nn.SiLU(), _convolution(channels_out, channels_out), nn.SiLU()
        )


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Return a 3x3 convolution whose output is as large as its input (He et al., arXiv:1502.01852)."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)
    return convolution
