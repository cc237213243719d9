"""From the tokens of a vision transformer to a pyramid of feature maps, by random convolutions (arXiv:2111.01007)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Readout(nn.Module):
    """Turn four token maps of one size into four maps of 4, 2, 1 and 1/2 times that size.

    Each map has a 1x1 convolution to its width; then the finest two are enlarged by a transposed convolution without
    overlap and the coarsest is halved by a 3x3 convolution. The class tokens have been dropped before.

    State dict: `layer{0..3}.project.{weight,bias}`, `layer{0,1,3}.resize.{weight,bias}`. The weights keep torch's
    initial values; nothing here is ever trained.
    """

    def __init__(self, *, width: int, channels: Sequence[int]) -> None:
        """Draw the weights from torch's generator.

        Args:
            width: Channels of a token.
            channels: Channels of the four maps, fine to coarse.
        """
        super().__init__()
        finest, fine, middle, coarse = channels
        self.layer0 = _Layer(width, finest, resize=nn.ConvTranspose2d(finest, finest, kernel_size=4, stride=4))
        self.layer1 = _Layer(width, fine, resize=nn.ConvTranspose2d(fine, fine, kernel_size=2, stride=2))
        self.layer2 = _Layer(width, middle, resize=nn.Identity())
        self.layer3 = _Layer(width, coarse, resize=nn.Conv2d(coarse, coarse, kernel_size=3, stride=2, padding=1))

    def forward(self, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return maps, fine to coarse, of four token maps [B, width, H, W], those of the earliest block first."""
        return tuple(layer(each) for layer, each in zip(self.children(), tokens, strict=True))


class _Layer(nn.Module):
    """A 1x1 convolution, then another size."""

    def __init__(self, width: int, channels: int, *, resize: nn.Module) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, channels, kernel_size=1)
        self.resize = resize

    def forward(self, tokens: Tensor) -> Tensor:
        return self.resize(self.project(tokens))


def readout_channels(width: int) -> tuple[int, ...]:
    """Return the published channels of the four maps (96, 192, 384, 768 for tokens of 768)."""
    return width // 8, width // 4, width // 2, width


def readout_strides(patch: int) -> tuple[float, ...]:
    """Return how many pixels of the image one pixel of each map stands for, each way."""
    return patch / 4, patch / 2, patch, patch * 2
