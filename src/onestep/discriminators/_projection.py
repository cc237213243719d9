"""The fixed random projections of Projected GANs (arXiv:2111.01007): token readout, and cross-scale mixing.

Legend: B images, C H W a feature map. Taps are four inner feature maps of a backbone, from fine to coarse. All weights
keep torch's initial values; nothing here is trained.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class CrossScaleMixing(nn.Module):
    """Cross-channel mixing (CCM) of four taps by 1x1 convolutions, then cross-scale mixing (CSM) from coarse to fine.

    Map i + 1 is added to tap i, so `out_channels[i + 1] == ccm_channels[i]`.
    State dict: `layer{0..3}_ccm.{weight,bias}` and `layer{0..3}_csm.out_conv.{weight,bias}`, as in the reference.
    """

    def __init__(
        self, *, tap_channels: Sequence[int], ccm_channels: Sequence[int], out_channels: Sequence[int]
    ) -> None:
        super().__init__()
        assert tuple(out_channels[1:]) == tuple(ccm_channels[:-1]), "a mixed map is added to the next finer tap"
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

    Each map gets a 1x1 convolution from the tokens' `width` to its own of the `channels`, from fine to coarse; then the
    finest two are enlarged by a transposed convolution without overlap, and the coarsest is halved by a 3x3
    convolution. Class tokens are not among the inputs.

    State dict: `layer{0..3}.project.{weight,bias}`, `layer{0,1,3}.resize.{weight,bias}`.
    """

    def __init__(self, *, width: int, channels: Sequence[int]) -> None:
        super().__init__()
        finest, fine, middle, coarse = channels
        self.layer0 = _readout(width, finest, resize=nn.ConvTranspose2d(finest, finest, kernel_size=4, stride=4))
        self.layer1 = _readout(width, fine, resize=nn.ConvTranspose2d(fine, fine, kernel_size=2, stride=2))
        self.layer2 = _readout(width, middle, resize=nn.Identity())
        self.layer3 = _readout(width, coarse, resize=nn.Conv2d(coarse, coarse, kernel_size=3, stride=2, padding=1))

    def forward(self, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return maps, from fine to coarse, of four token maps [B, width, H, W], from the earliest block on."""
        return tuple(layer(each) for layer, each in zip(self.children(), tokens, strict=True))


def _readout(width: int, channels: int, *, resize: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(project=nn.Conv2d(width, channels, kernel_size=1), resize=resize))
