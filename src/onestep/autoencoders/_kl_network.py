"""The autoencoder of latent diffusion (arXiv:2112.10752, appendix G) in the form and with the names of diffusers.

Legend: B images, C H W a feature map, Z latent channels, f the factor between the sizes of images and of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.networks._unet import fused_attention, plain_attention, run_block

_EPS = 1e-6  # of all normalisations


class Sizes(NamedTuple):
    """The architecture of an AutoencoderKL."""

    channels: int  # of images
    latent_channels: int  # Z
    widths: tuple[int, ...]  # of each level, from fine to coarse; each but the last halves the size
    layers: int  # residual blocks of a level of the encoder; one more in the decoder
    groups: int  # of the normalisation

    @property
    def factor(self) -> int:
        """Pixels of an image for each of a latent, along a side: f."""
        return 1 << (len(self.widths) - 1)


class KLNetwork(nn.Module):
    """Encoder and decoder, with the names of AutoencoderKL's parameters.

    Attributes:
        recompute: Whether the backward pass computes the activations of a call of `decode` again, from its latents.
    """

    recompute = False

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, latent = sizes, sizes.latent_channels
        self.encoder = _Encoder(sizes)
        self.decoder = _Decoder(sizes)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def moments(self, x: Tensor) -> Tensor:
        """Return mean and standard deviation of the latents of images: [B, 2 Z, H / f, W / f]."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        deviation = (0.5 * log_variance.clamp(-30.0, 20.0)).exp()
        return torch.cat([mean, deviation], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images [B, C, f H, f W] of latents [B, Z, H, W]."""
        return run_block(self._decode, z, recompute=self.recompute)

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class _Encoder(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        first, coarsest = sizes.widths[0], sizes.widths[-1]
        self.conv_in = nn.Conv2d(sizes.channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(pairwise((first, *sizes.widths))):
            inputs = [before, *[width] * (sizes.layers - 1)]
            shrink = _Downsample(width) if level < len(sizes.widths) - 1 else None
            self.down_blocks.append(_Level(inputs, width, groups=sizes.groups, downsamplers=shrink))
        self.mid_block = _Middle(coarsest, groups=sizes.groups)
        self.conv_norm_out = nn.GroupNorm(sizes.groups, coarsest, _EPS)
        self.conv_out = nn.Conv2d(coarsest, 2 * sizes.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class _Decoder(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        finest, coarsest = sizes.widths[0], sizes.widths[-1]
        self.conv_in = nn.Conv2d(sizes.latent_channels, coarsest, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        widths = sizes.widths[::-1]
        for level, (before, width) in enumerate(pairwise((coarsest, *widths))):
            enlarge = _Upsample(width) if level < len(widths) - 1 else None
            inputs = [before, *[width] * sizes.layers]
            self.up_blocks.append(_Level(inputs, width, groups=sizes.groups, upsamplers=enlarge))
        self.mid_block = _Middle(coarsest, groups=sizes.groups)
        self.conv_norm_out = nn.GroupNorm(sizes.groups, finest, _EPS)
        self.conv_out = nn.Conv2d(finest, sizes.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            z = level(z)
        return self.conv_out(F.silu(self.conv_norm_out(z)))


class _Level(nn.Module):
    """Residual blocks at one size, then a resampling."""

    def __init__(
        self,
        inputs: Sequence[int],
        width: int,
        *,
        groups: int,
        downsamplers: nn.Module | None = None,
        upsamplers: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Residual(each, width, groups=groups) for each in inputs)
        if downsamplers is not None:
            self.downsamplers = nn.ModuleList([downsamplers])
        if upsamplers is not None:
            self.upsamplers = nn.ModuleList([upsamplers])

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.resnets, *getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())):
            x = part(x)
        return x


class _Middle(nn.Module):
    """A residual block, self-attention, a residual block."""

    def __init__(self, width: int, *, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([_Attention(width, groups=groups)])
        self.resnets = nn.ModuleList(_Residual(width, width, groups=groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class _Residual(nn.Module):
    recompute = False

    def __init__(self, before: int, width: int, *, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, _EPS)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, _EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, width, 1) if before != width else None

    def forward(self, x: Tensor) -> Tensor:
        return run_block(self._run, x, recompute=self.recompute)

    def _run(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Attention(nn.Module):
    """Self-attention of one head over pixels, with a shortcut."""

    recompute = False

    def __init__(self, width: int, *, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, _EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return run_block(self._run, x, recompute=self.recompute)

    def _run(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        heads = [each(tokens).transpose(1, 2).unsqueeze(1) for each in (self.to_q, self.to_k, self.to_v)]
        mixed = (fused_attention if x.is_cuda else plain_attention)(*heads).squeeze(1)
        return self.to_out[0](mixed.transpose(1, 2)).transpose(1, 2).reshape(x.shape) + x


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
