"""Random fixed mixing of feature maps, across channels and scales (Projected GANs, arXiv:2111.01007)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Mixing(nn.Module):
    """Mix four taps, fine to coarse: 1x1 convolutions in each, then a path from the coarsest up to the finest.

    State dict: `layer{0..3}_ccm.{weight,bias}` (cross-channel) and `layer{0..3}_csm.out_conv.{weight,bias}`
    (cross-scale), as in the reference. The weights keep torch's initial values; nothing here is ever trained.

    Attributes:
        out_channels: Channels of the four mixed maps, fine to coarse.
    """

    def __init__(
        self, *, tap_channels: Sequence[int], ccm_channels: Sequence[int], out_channels: Sequence[int]
    ) -> None:
        """Draw the weights from torch's generator.

        Args:
            tap_channels: Channels of the four taps, fine to coarse.
            ccm_channels: Channels after the cross-channel convolutions.
            out_channels: Channels after the cross-scale convolutions; map i + 1 is added to the taps of map i, so
                `out_channels[i + 1] == ccm_channels[i]`.
        """
        super().__init__()
        assert tuple(out_channels[1:]) == tuple(ccm_channels[:-1]), "a map is added to the tap above it"
        self.out_channels = tuple(out_channels)
        for level, (tap, ccm) in enumerate(zip(tap_channels, ccm_channels, strict=True)):
            self.add_module(f"layer{level}_ccm", nn.Conv2d(tap, ccm, kernel_size=1))
        for level, (ccm, out) in enumerate(zip(ccm_channels, out_channels, strict=True)):
            self.add_module(f"layer{level}_csm", _Doubling(ccm, out))

    def forward(self, taps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Mix taps [B, C_i, H_i, W_i]; the mixed maps are [B, out_i, 2 H_i, 2 W_i]."""
        mixed: list[Tensor] = []
        for level in reversed(range(len(taps))):
            tap = self.get_submodule(f"layer{level}_ccm")(taps[level])
            mixed.append(self.get_submodule(f"layer{level}_csm")(mixed[-1] + tap if mixed else tap))
        return tuple(reversed(mixed))


class _Doubling(nn.Module):
    """A 1x1 convolution and twice the size."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        # Differs from the reference: it doubles, then convolves. Interpolation weights sum to 1, so the two commute
        # (up to rounding), and this order needs a quarter of the multiplications.
        return F.interpolate(self.out_conv(features), scale_factor=2, mode="bilinear", align_corners=True)


def widths(channels: int, *, levels: int = 4) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the published widths for `channels` at the finest level: cross-channel (64, 128, 256, 512 for 64)
    and cross-scale, half of that but for the finest (64, 64, 128, 256).
    """
    ccm = tuple(channels << level for level in range(levels))
    return ccm, (ccm[0], *ccm[:-1])
