"""The U-Net ADM of Dhariwal and Nichol (arXiv:2105.05233), as EDM builds it (arXiv:2206.00364, table 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.config.constraints import Factors, Few, Natural, Resolutions, ShareBelowOne, Width
from onestep.networks._layers import Conv2d, GroupNorm, Init, Linear, positional_angles
from onestep.networks._unet import BlockStyle, EdmUNet, augmentation_embedding, build_unet, condition_dropped

__all__ = ["DhariwalUNet"]

_INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
_ZERO = Init("kaiming_uniform", weight=0.0)


class DhariwalUNet(EdmUNet):
    """ADM, the network of ImageNet at 64 x 64 pixels.

    The arguments are those of `onestep.networks.song_unet.SongUNet`. Attention heads have 64 channels. The defaults are
    those of EDM's constructor, because published checkpoints omit them. ValueError: the sizes do not fit each other.
    """

    freeze_levels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "conv": ("model.*.conv[01].*",),
        "proj": ("model.*.proj.*",),
        "qkv": ("model.*.qkv.*",),
        "skip": ("model.*.skip.*",),
        "encoder": ("model.enc.*",),
        "decoder": ("model.dec.*",),
        "all_but_norms": ("*", "!model.*norm*.*", "!model.*.affine.*"),  # trains norms and the embedding's scales
    }
    block_layers: ClassVar[Mapping[str, tuple[str, str]]] = {
        "encoder": ("model.enc.*", "conv1"),
        "decoder": ("model.dec.*", "conv1"),
    }
    generator_options: ClassVar[Mapping[str, int]] = {"augment_dim": 0}
    teacher_only: ClassVar[tuple[str, ...]] = ("model.map_augment.weight",)
    casts_weights: ClassVar[bool] = True
    decoder_parts: ClassVar[tuple[str, ...]] = ("dec", "out_norm", "out_conv")

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: Natural = 0,
        model_channels: Width = 192,
        channel_mult: Factors = (1, 2, 3, 4),
        channel_mult_emb: Few = 4,
        num_blocks: Few = 3,
        attn_resolutions: Resolutions = (32, 16, 8),
        dropout: ShareBelowOne = 0.10,
        label_dropout: ShareBelowOne = 0.0,
    ) -> None:
        super().__init__()
        self.label_dropout, self.noise_channels = label_dropout, model_channels
        emb_channels = model_channels * channel_mult_emb
        widths = [model_channels * factor for factor in channel_mult]
        style = BlockStyle(
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
        self.map_augment = Linear(augment_dim, model_channels, init=_ZERO, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init=_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=_INIT)
        init_label = Init("kaiming_normal", weight=math.sqrt(label_dim))
        self.map_label = Linear(label_dim, emb_channels, init=init_label, bias=False) if label_dim else None
        self.enc, self.dec = build_unet(
            img_resolution=img_resolution,
            img_channels=img_channels,
            widths=widths,
            blocks=num_blocks,
            attn_resolutions=attn_resolutions,
            decoder_attn_blocks=range(num_blocks + 1),
            style=style,
        )
        self.map_shapes = tuple((width, img_resolution >> level) for level, width in enumerate(widths))
        self.encoded = self.map_shapes[-1]
        self.out_norm = GroupNorm(widths[0], eps=1e-5)
        self.out_conv = Conv2d(widths[0], img_channels, kernel=3, init=_ZERO)

    def _end(self, x: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(x)))

    def _embed(self, noise: Tensor, condition: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        angles = positional_angles(noise, count=self.noise_channels // 2, endpoint=False)
        emb = torch.cat([angles.cos(), angles.sin()], dim=1)
        if (described := augmentation_embedding(self.map_augment, augment_labels)) is not None:
            emb = emb + described
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            condition = condition_dropped(condition, probability=self.label_dropout, training=self.training)
            emb = emb + self.map_label(condition)
        return F.silu(emb)
