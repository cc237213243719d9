"""The U-Net ADM of Dhariwal and Nichol (arXiv:2105.05233), as EDM builds it (arXiv:2206.00364, table 7)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.networks._blocks import BlockStyle
from onestep.networks._ladder import Ladder, ascend, decoder, descend, encoder
from onestep.networks._layers import Conv2d, GroupNorm, Init, Linear, positional_angles

__all__ = ["DhariwalUNet"]

_INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
_ZERO = Init("kaiming_uniform", weight=0.0)


class DhariwalUNet(nn.Module):
    """ADM, the network of ImageNet at 64x64 pixels.

    The defaults are those of EDM's constructor, because published checkpoints leave them out.

    Args:
        img_resolution: Pixels a side.
        img_channels: Channels of the images, in and out.
        label_dim: Classes; 0 is unconditional.
        augment_dim: Width of the description of an augmentation; 0 is none.
        model_channels: The width that `channel_mult` multiplies.
        channel_mult: Factor on the width of each level, from fine to coarse; each level halves the resolution.
        channel_mult_emb: Factor on the width of the embedding.
        num_blocks: Blocks a level.
        attn_resolutions: Resolutions with self-attention, in heads of 64 channels.
        dropout: Probability of a zero between the convolutions of a block, in training.
        label_dropout: Probability that a row's class is withheld, in training.

    Raises:
        ValueError: The numbers do not fit each other.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.label_dropout, self.noise_channels = label_dropout, model_channels
        emb_channels = model_channels * channel_mult_emb
        ladder = Ladder(
            img_resolution=img_resolution,
            widths=tuple(model_channels * factor for factor in channel_mult),
            blocks=num_blocks,
            attn_resolutions=tuple(attn_resolutions),
            attn_blocks_up=tuple(range(num_blocks + 1)),
            style=_style(emb_channels=emb_channels, dropout=dropout),
        )
        self.map_augment = Linear(augment_dim, model_channels, init=_ZERO, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init=_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=_INIT)
        init_label = Init("kaiming_normal", weight=math.sqrt(label_dim))
        self.map_label = Linear(label_dim, emb_channels, init=init_label, bias=False) if label_dim else None
        self.enc, left = encoder(ladder, img_channels=img_channels, width=ladder.widths[0], residual=False)
        self.dec = decoder(ladder, left=left)
        self.out_norm = GroupNorm(ladder.widths[0], eps=1e-5)
        self.out_conv = Conv2d(ladder.widths[0], img_channels, kernel=3, init=_ZERO)

    def forward(
        self, x: Tensor, noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Run the network.

        Args:
            x: Scaled images [B, C, H, W].
            noise: Scaled noise levels [B] (or [1]), float32.
            labels: One-hot classes [B, K], float32; None for an unconditional network.
            augment_labels: Descriptions of augmentations [B, augment_dim], float32, or None.

        Returns:
            [B, C, H, W] of the type of `x`.
        """
        emb = self._embed(noise, labels, augment_labels)
        x = ascend(self.dec, descend(self.enc, x, emb), emb)
        return self.out_conv(F.silu(self.out_norm(x)))

    def _embed(self, noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        angles = positional_angles(noise, count=self.noise_channels // 2, endpoint=False)
        emb = torch.cat([angles.cos(), angles.sin()], dim=1)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            if self.training and self.label_dropout:
                labels = labels * (torch.rand_like(labels[:, :1]) >= self.label_dropout)
            emb = emb + self.map_label(labels)
        return F.silu(emb)


def _style(*, emb_channels: int, dropout: float) -> BlockStyle:
    return BlockStyle(
        emb_channels=emb_channels,
        channels_per_head=64,
        dropout=dropout,
        skip_scale=1.0,
        eps=1e-5,
        resample_filter=(1, 1),
        resample_proj=False,
        adaptive_scale=True,
        init=_INIT,
        init_last=_ZERO,
        init_attention=_INIT,
    )
