"""The fixed random projections of Projected GANs (arXiv:2111.01007): token readout, and cross-scale mixing.

Legend: B images, C H W a feature map. Taps are four inner feature maps of a backbone, from fine to coarse. All weights
keep torch's initial values; nothing here is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class CrossScaleMixing(nn.Module):
    """Cross-channel mixing (CCM) of four taps by 1x1 convolutions, then cross-scale mixing (CSM) from coarse to fine.

    State dict: `layer{0..3}_ccm.{weight,bias}` and `layer{0..3}_csm.out_conv.{weight,bias}`, as in the reference.

    Attributes:
        out_channels: Channels of the four mixed maps, from fine to coarse.
    """

    def __init__(
        self, *, tap_channels: Sequence[int], ccm_channels: Sequence[int], out_channels: Sequence[int]
    ) -> None:
        """Draw the weights from torch's generator.

        Args:
            tap_channels: Channels of the four taps.
            ccm_channels: Channels after the cross-channel convolutions.
            out_channels: Channels after the cross-scale convolutions. Map i + 1 is added to tap i, so
                `out_channels[i + 1] == ccm_channels[i]`.
        """
        super().__init__()
        assert tuple(out_channels[1:]) == tuple(ccm_channels[:-1]), "a mixed map is added to the next finer tap"
        self.out_channels = tuple(out_channels)
        for level, (tap, ccm) in enumerate(zip(tap_channels, ccm_channels, strict=True)):
            self.add_module(f"layer{level}_ccm", nn.Conv2d(tap, ccm, kernel_size=1))
        for level, (ccm, out) in enumerate(zip(ccm_channels, out_channels, strict=True)):
            self.add_module(f"layer{level}_csm", _ConvUpsample(ccm, out))

    def forward(self, taps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Mix taps [B, C_i, H_i, W_i]; the mixed maps are [B, out_i, 2 H_i, 2 W_i]."""
        mixed: list[Tensor] = []
        for level in reversed(range(len(taps))):
            tap = self.get_submodule(f"layer{level}_ccm")(taps[level])
            mixed.append(self.get_submodule(f"layer{level}_csm")(mixed[-1] + tap if mixed else tap))
        return tuple(reversed(mixed))


class _ConvUpsample(nn.Module):
    """A 1x1 convolution, then bilinear upsampling by two."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        # Differs from the reference: it upsamples, then convolves. Interpolation weights sum to 1, so the two commute
        # (up to rounding), and this order needs a quarter of the multiplications.
        return F.interpolate(self.out_conv(features), scale_factor=2, mode="bilinear", align_corners=True)


def mixing_channels(channels: int, *, levels: int = 4) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the published channels after CCM and after CSM, for `channels` at the finest level.

    For 64: (64, 128, 256, 512) and (64, 64, 128, 256).
    """
    ccm = tuple(channels << level for level in range(levels))
    return ccm, (ccm[0], *ccm[:-1])


class TokenReadout(nn.Module):
    """Turns four token maps of one size into four maps of 4, 2, 1 and 1/2 times that size.

    Each map gets a 1x1 convolution; then the finest two are enlarged by a transposed convolution without overlap, and
    the coarsest is halved by a 3x3 convolution. Class tokens are not among the inputs.

    State dict: `layer{0..3}.project.{weight,bias}`, `layer{0,1,3}.resize.{weight,bias}`.
    """

    def __init__(self, *, width: int, channels: Sequence[int]) -> None:
        """Draw the weights from torch's generator.

        Args:
            width: Channels of a token.
            channels: Channels of the four maps, from fine to coarse.
        """
        super().__init__()
        finest, fine, middle, coarse = channels
        self.layer0 = _Readout(width, finest, resize=nn.ConvTranspose2d(finest, finest, kernel_size=4, stride=4))
        self.layer1 = _Readout(width, fine, resize=nn.ConvTranspose2d(fine, fine, kernel_size=2, stride=2))
        self.layer2 = _Readout(width, middle, resize=nn.Identity())
        self.layer3 = _Readout(width, coarse, resize=nn.Conv2d(coarse, coarse, kernel_size=3, stride=2, padding=1))

    def forward(self, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return maps, from fine to coarse, of four token maps [B, width, H, W], from the earliest block on."""
        return tuple(layer(each) for layer, each in zip(self.children(), tokens, strict=True))


class _Readout(nn.Module):
    """A 1x1 convolution, then a change of size."""

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
    """Return the image pixels per pixel of each of the four maps, in each direction."""
    return patch / 4, patch / 2, patch, patch * 2
