"""The parts of EDM's two U-Nets: blocks, encoder, decoder (Karras et al., arXiv:2206.00364, appendix F).

Legend: B images, C H W a feature map, E the width of the embedding of noise level and condition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.networks._layers import Conv2d, ConvDownsample2d, GroupNorm, Init, Linear, Resample, ResampleConv2d


@dataclass(frozen=True, kw_only=True)
class BlockStyle:
    """The options that all blocks of a U-Net share."""

    emb_channels: int  # E
    channels_per_head: int | None  # None for one head of all channels
    dropout: float  # probability, in training mode
    skip_scale: float  # factor after each residual addition
    eps: float  # of the group normalisation
    resample_filter: tuple[int, ...]  # taps of the low-pass filter
    resample_proj: bool  # whether a resampling shortcut has a 1x1 convolution even if the width stays
    adaptive_scale: bool  # whether the embedding scales and shifts the normalised map; otherwise it is added before
    init: Init  # of all layers but the following
    init_last: Init  # of the last layer of each residual branch; small values make a new block almost the identity
    init_attention: Init  # of queries, keys and values


class UNetBlock(nn.Module):
    """Two convolutions, conditioned on the embedding, with a shortcut; then self-attention with a shortcut, or none."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        style: BlockStyle,
        resample: Resample | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.style = in_channels, style
        # No attention below the width of one head, as in the reference.
        self.heads = out_channels // (style.channels_per_head or out_channels) if attention else 0
        widths = out_channels * (2 if style.adaptive_scale else 1)
        self.norm0 = GroupNorm(in_channels, eps=style.eps)
        self.conv0 = _convolution(in_channels, out_channels, kernel=3, resample=resample, style=style)
        self.affine = Linear(style.emb_channels, widths, init=style.init)
        self.norm1 = GroupNorm(out_channels, eps=style.eps)
        # Differs from the reference: this is EDM's initialisation; the D2O repository uses `init` for conv1 and proj.
        # Its generators start from a teacher's weights, so none depends on it.
        self.conv1 = Conv2d(out_channels, out_channels, kernel=3, init=style.init_last)
        self.skip: nn.Module | None = None
        if out_channels != in_channels or resample is not None:
            kernel = 1 if style.resample_proj or out_channels != in_channels else 0
            self.skip = _convolution(in_channels, out_channels, kernel=kernel, resample=resample, style=style)
        if self.heads:
            self.norm2 = GroupNorm(out_channels, eps=style.eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, kernel=1, init=style.init_attention)
            self.proj = Conv2d(out_channels, out_channels, kernel=1, init=style.init_last)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map [B, in, H, W] with embeddings [B, E] (or [1, E]) to [B, out, H', W']."""
        h = self.conv0(F.silu(self.norm0(x)))
        condition = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.style.adaptive_scale:
            scale, shift = condition.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + condition))
        h = self.conv1(F.dropout(h, self.style.dropout, self.training))
        h = (h + (x if self.skip is None else self.skip(x))) * self.style.skip_scale
        if not self.heads:
            return h
        return (self.proj(attend(self.qkv(self.norm2(h)), heads=self.heads)) + h) * self.style.skip_scale


def _convolution(
    in_channels: int, out_channels: int, *, kernel: int, resample: Resample | None, style: BlockStyle
) -> nn.Module:
    if resample is None:
        return Conv2d(in_channels, out_channels, kernel=kernel, init=style.init)
    taps = style.resample_filter
    return ResampleConv2d(
        in_channels, out_channels, kernel=kernel, resample=resample, resample_filter=taps, init=style.init
    )


def attend(qkv: Tensor, *, heads: int) -> Tensor:
    """Self-attention over pixels: softmax(q k / sqrt(head width)) v, with the softmax in float32.

    `qkv` [B, 3C, H, W] holds, head by head and channel by channel, the triple (query, key, value).
    Returns [B, C, H, W].
    """
    rows, channels, height, width = qkv.shape
    query, key, value = qkv.reshape(rows, heads, channels // (3 * heads), 3, height * width).unbind(3)
    mixed = (fused_attention if qkv.is_cuda else plain_attention)(query, key, value)
    return mixed.reshape(rows, channels // 3, height, width)


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention in one kernel; all tensors are [B, heads, head width, pixels]."""
    mixed = F.scaled_dot_product_attention(query.transpose(2, 3), key.transpose(2, 3), value.transpose(2, 3))
    # Contiguous, because later layers would keep the strides of this view, which is slow.
    return mixed.transpose(2, 3).contiguous()


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as two matrix products, faster on a CPU; all tensors are [B, heads, head width, pixels]."""
    logits = query.transpose(2, 3).to(torch.float32) @ (key / math.sqrt(key.shape[2])).to(torch.float32)
    return value @ logits.softmax(dim=3).to(value.dtype).transpose(2, 3)


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The resolutions of a U-Net from fine to coarse, each half the one before."""

    img_resolution: int  # H and W of the finest level
    widths: tuple[int, ...]  # channels of the blocks of each level
    blocks: int  # per level in the encoder; the decoder has one more
    attn_resolutions: tuple[int, ...]  # resolutions with attention
    decoder_attn_blocks: tuple[int, ...]  # indices of the decoder's blocks with it there; in the encoder all have it
    style: BlockStyle

    def __post_init__(self) -> None:
        factor = 1 << max(len(self.widths) - 1, 0)
        if not self.widths or self.img_resolution % factor:
            raise ValueError(
                f"channel_mult: got {len(self.widths)} levels, each of half the resolution of the one before, for "
                f"images of {self.img_resolution} pixels; expected at least one level and a resolution divisible by "
                f"{factor}"
            )

    def listed(self) -> list[tuple[str, int, bool]]:
        """Return name, channels and attention of each level, from fine to coarse."""
        sizes = [self.img_resolution >> level for level in range(len(self.widths))]
        return [(f"{n}x{n}", width, n in self.attn_resolutions) for n, width in zip(sizes, self.widths, strict=True)]


def encoder(levels: Levels, *, img_channels: int, width: int, residual: bool) -> tuple[nn.ModuleDict, list[int]]:
    """Build the encoder, which begins with a convolution from the image to `width` channels.

    Return the blocks by name, and the channels of the feature maps that they hand to the decoder. With `residual`, each
    downsampling has a side branch that carries the image down (the progressive input of NCSN++, arXiv:2011.13456).
    """
    style, blocks = levels.style, nn.ModuleDict()
    channels, image_channels, skips = width, img_channels, [width]
    for level, (at, level_width, attention) in enumerate(levels.listed()):
        if level == 0:
            blocks[f"{at}_conv"] = Conv2d(img_channels, width, kernel=3, init=style.init)
        else:
            blocks[f"{at}_down"] = UNetBlock(channels, channels, style=style, resample="down")
            skips.append(channels)
        if level > 0 and residual:
            blocks[f"{at}_aux_residual"] = ConvDownsample2d(
                image_channels, channels, kernel=3, resample_filter=style.resample_filter, init=style.init
            )
            image_channels = channels
        for index in range(levels.blocks):
            blocks[f"{at}_block{index}"] = UNetBlock(channels, level_width, style=style, attention=attention)
            channels = level_width
            skips.append(channels)
    return blocks, skips


def decoder(levels: Levels, *, skips: list[int]) -> nn.ModuleDict:
    """Build the decoder, whose blocks also take the encoder's maps of `skips` channels, the last map first."""
    style, blocks, skips = levels.style, nn.ModuleDict(), list(skips)
    channels = skips[-1]
    for level, (at, level_width, attention) in reversed(list(enumerate(levels.listed()))):
        if level == len(levels.widths) - 1:
            blocks[f"{at}_in0"] = UNetBlock(channels, channels, style=style, attention=True)
            blocks[f"{at}_in1"] = UNetBlock(channels, channels, style=style)
        else:
            blocks[f"{at}_up"] = UNetBlock(channels, channels, style=style, resample="up")
        for index in range(levels.blocks + 1):
            here = attention and index in levels.decoder_attn_blocks
            blocks[f"{at}_block{index}"] = UNetBlock(channels + skips.pop(), level_width, style=style, attention=here)
            channels = level_width
    return blocks


def encode(blocks: nn.ModuleDict, x: Tensor, emb: Tensor) -> list[Tensor]:
    """Run the encoder on images [B, C, H, W]; return the maps for the decoder."""
    skips: list[Tensor] = []
    image = x
    for block in blocks.values():
        if isinstance(block, UNetBlock):
            skips.append(block(skips[-1], emb))
        elif isinstance(block, ConvDownsample2d):
            image = skips[-1] = (skips[-1] + block(image)) / math.sqrt(2)
        else:
            skips.append(block(x))
    return skips


def decode(blocks: nn.ModuleDict, skips: list[Tensor], emb: Tensor) -> Tensor:
    """Run the decoder from the last of the encoder's maps (`skips` is consumed); return the finest map."""
    x = skips[-1]
    for block in blocks.values():
        if isinstance(block, UNetBlock):
            inputs = x if x.shape[1] == block.in_channels else torch.cat([x, skips.pop()], dim=1)
            x = block(inputs, emb)
    return x


def condition_dropped(condition: Tensor, *, probability: float, training: bool) -> Tensor:
    """Set rows of a condition [B, K] to zero at random, in training mode."""
    if training and probability:
        return condition * (torch.rand_like(condition[:, :1]) >= probability)
    return condition


def augmentation_embedding(layer: Linear | None, augment_labels: Tensor | None) -> Tensor | None:
    """Embed augmentation labels [B, augment_dim]; ValueError: the layer takes another width."""
    width = 0 if layer is None else layer.weight.shape[1]
    # Differs from the reference: there a network without augment_dim ignores the labels and learns augmented images.
    if augment_labels is not None and augment_labels.shape[1] != width:
        given = augment_labels.shape[1]
        raise ValueError(f"augment_labels: got {given} per image, expected {width}. Fix: set augment_dim: {given}")
    return None if layer is None or augment_labels is None else layer(augment_labels)
