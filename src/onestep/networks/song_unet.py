"""The U-Nets DDPM++ and NCSN++ of Song et al. (arXiv:2011.13456), as EDM builds them (arXiv:2206.00364, table 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.config.constraints import Factors, Few, Natural, Resolutions, ShareBelowOne, Taps, Width
from onestep.networks._layers import Conv2d, FourierAngles, GroupNorm, Init, Linear, positional_angles
from onestep.networks._unet import BlockStyle, EdmUNet, augmentation_embedding, build_unet, condition_dropped

__all__ = ["SongUNet"]

_INIT = Init("xavier_uniform")
_ALMOST_ZERO = Init("xavier_uniform", weight=1e-5)


class SongUNet(EdmUNet):
    """DDPM++ (positional, standard, 1, [1, 1]) and NCSN++ (fourier, residual, 2, [1, 3, 3, 1]).

    The defaults are those of EDM's constructor, because published checkpoints omit them.

    Args:
        img_resolution: H and W of the images.
        img_channels: Channels of input and output.
        label_dim: Width of the condition; 0 for an unconditional network.
        augment_dim: Augmentation labels per image; 0 for none.
        model_channels: Base width, multiplied by the factors below.
        channel_mult: Width factor of each level, from fine to coarse; each level halves the resolution.
        channel_mult_emb: Width factor of the embedding, as `channel_mult_noise` of the noise level's embedding.
        num_blocks: Blocks per level.
        attn_resolutions: Resolutions with self-attention.
        dropout: Probability between the convolutions of a block; `label_dropout` of a condition of zeros.
        encoder_type: `residual` adds a side branch that carries the image down.
        decoder_type: The only type of the published checkpoints.
        resample_filter: Taps of the low-pass filter around resampling.

    Raises:
        ValueError: An option is not among its choices, or the sizes do not fit each other.
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
    decoder_parts: ClassVar[tuple[str, ...]] = ("dec",)

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: Natural = 0,
        model_channels: Width = 128,
        channel_mult: Factors = (1, 2, 2, 2),
        channel_mult_emb: Few = 4,
        num_blocks: Few = 4,
        attn_resolutions: Resolutions = (16,),
        dropout: ShareBelowOne = 0.10,
        label_dropout: ShareBelowOne = 0.0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: Few = 1,
        encoder_type: Literal["standard", "residual"] = "standard",
        decoder_type: Literal["standard"] = "standard",
        resample_filter: Taps = (1, 1),
    ) -> None:
        super().__init__()
        for option, value, choices in (
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("encoder_type", encoder_type, ("standard", "residual")),
            ("decoder_type", decoder_type, ("standard",)),
        ):
            if value not in choices:
                raise ValueError(f"{option}: got {value!r}, expected one of {', '.join(choices)}")
        self.label_dropout = label_dropout
        self.noise_channels = model_channels * channel_mult_noise
        emb_channels = model_channels * channel_mult_emb
        widths = [model_channels * factor for factor in channel_mult]
        style = BlockStyle(
            emb_channels=emb_channels,
            channels_per_head=None,
            dropout=dropout,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            resample_filter=tuple(resample_filter),
            resample_proj=True,
            adaptive_scale=False,
            init=_INIT,
            init_last=_ALMOST_ZERO,
            init_attention=Init("xavier_uniform", weight=math.sqrt(0.2)),
        )
        self.map_noise = FourierAngles(self.noise_channels // 2) if embedding_type == "fourier" else None
        self.map_label = Linear(label_dim, self.noise_channels, init=_INIT) if label_dim else None
        self.map_augment = Linear(augment_dim, self.noise_channels, init=_INIT, bias=False) if augment_dim else None
        self.map_layer0 = Linear(self.noise_channels, emb_channels, init=_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=_INIT)
        self.enc, self.dec = build_unet(
            img_resolution=img_resolution,
            img_channels=img_channels,
            widths=widths,
            blocks=num_blocks,
            attn_resolutions=attn_resolutions,
            decoder_attn_blocks=(num_blocks,),
            style=style,
            first_width=model_channels,
            residual=encoder_type == "residual",
        )
        self.map_shapes = tuple((width, img_resolution >> level) for level, width in enumerate(widths))
        self.encoded = self.map_shapes[-1]
        at = f"{img_resolution}x{img_resolution}"
        self._norm_out, self._conv_out = f"{at}_aux_norm", f"{at}_aux_conv"
        self.dec[self._norm_out] = GroupNorm(widths[0], eps=1e-6)
        self.dec[self._conv_out] = Conv2d(widths[0], img_channels, kernel=3, init=_ALMOST_ZERO)

    def _end(self, x: Tensor) -> Tensor:
        return self.dec[self._conv_out](F.silu(self.dec[self._norm_out](x)))

    def _embed(self, noise: Tensor, condition: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        if self.map_noise is None:
            angles = positional_angles(noise, count=self.noise_channels // 2, endpoint=True)
        else:
            angles = self.map_noise(noise)
        emb = torch.cat([angles.sin(), angles.cos()], dim=1)
        if self.map_label is not None:
            condition = condition_dropped(condition, probability=self.label_dropout, training=self.training)
            emb = emb + self.map_label(condition * math.sqrt(condition.shape[1]))
        if (described := augmentation_embedding(self.map_augment, augment_labels)) is not None:
            emb = emb + described
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
