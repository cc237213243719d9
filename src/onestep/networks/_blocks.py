"""The block EDM's two U-Nets are made of (Karras et al., arXiv:2206.00364, appendix F).

Legend: B images, C H W a feature map, E the width of the embedding of noise level and class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.networks._layers import Conv2d, GroupNorm, Init, Linear, Resample, ResampleConv2d


@dataclass(frozen=True, kw_only=True)
class BlockStyle:
    """What all blocks of one U-Net have in common.

    Attributes:
        emb_channels: E.
        channels_per_head: Width of an attention head; None is one head of all channels.
        dropout: Probability, in training only.
        skip_scale: Factor after each residual addition.
        eps: Of the group normalisation.
        resample_filter: Taps of the low-pass filter.
        resample_proj: Whether a resampling shortcut has a 1x1 convolution even where the width stays.
        adaptive_scale: Whether the embedding scales and shifts the normalised map, or is only added to it before.
        init: Of all layers but those below.
        init_last: Of the last layer of each residual branch, so that a fresh block is almost the identity.
        init_attention: Of the queries, keys and values.
    """

    emb_channels: int
    channels_per_head: int | None
    dropout: float
    skip_scale: float
    eps: float
    resample_filter: tuple[int, ...]
    resample_proj: bool
    adaptive_scale: bool
    init: Init
    init_last: Init
    init_attention: Init

    def heads(self, channels: int) -> int:
        """Return the number of heads; below one head's width it is 0, which is no attention (as in the reference)."""
        return 1 if self.channels_per_head is None else channels // self.channels_per_head


class UNetBlock(nn.Module):
    """Two convolutions, conditioned on the embedding, with a shortcut; then, if asked, self-attention with another."""

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
        self.heads = style.heads(out_channels) if attention else 0
        widths = out_channels * (2 if style.adaptive_scale else 1)
        self.norm0 = GroupNorm(in_channels, eps=style.eps)
        self.conv0 = _convolution(in_channels, out_channels, kernel=3, resample=resample, style=style)
        self.affine = Linear(style.emb_channels, widths, init=style.init)
        self.norm1 = GroupNorm(out_channels, eps=style.eps)
        # Differs from the reference: this is EDM's start; the D2O repository gives conv1 and proj `init` instead.
        # Its generators start from a teacher's weights, so the start matters to none of them.
        self.conv1 = Conv2d(out_channels, out_channels, kernel=3, init=style.init_last)
        self.skip = _shortcut(in_channels, out_channels, resample=resample, style=style)
        if self.heads:
            self.norm2 = GroupNorm(out_channels, eps=style.eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, kernel=1, init=style.init_attention)
            self.proj = Conv2d(out_channels, out_channels, kernel=1, init=style.init_last)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map [B, in, H, W] with embeddings [B, E] (or [1, E]) to [B, out, H', W']."""
        h = self._conditioned(self.conv0(F.silu(self.norm0(x))), self.affine(emb))
        h = self.conv1(F.dropout(h, self.style.dropout, self.training))
        h = (h + (x if self.skip is None else self.skip(x))) * self.style.skip_scale
        if not self.heads:
            return h
        return (self.proj(attend(self.qkv(self.norm2(h)), heads=self.heads)) + h) * self.style.skip_scale

    def _conditioned(self, h: Tensor, condition: Tensor) -> Tensor:
        condition = condition[:, :, None, None].to(h.dtype)
        if not self.style.adaptive_scale:
            return F.silu(self.norm1(h + condition))
        scale, shift = condition.chunk(2, dim=1)
        return F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))


def _convolution(
    in_channels: int, out_channels: int, *, kernel: int, resample: Resample | None, style: BlockStyle
) -> nn.Module:
    if resample is None:
        return Conv2d(in_channels, out_channels, kernel=kernel, init=style.init)
    taps = style.resample_filter
    return ResampleConv2d(
        in_channels, out_channels, kernel=kernel, resample=resample, resample_filter=taps, init=style.init
    )


def _shortcut(in_channels: int, out_channels: int, *, resample: Resample | None, style: BlockStyle) -> nn.Module | None:
    """Return None where the shortcut is the identity."""
    if out_channels == in_channels and resample is None:
        return None
    kernel = 1 if style.resample_proj or out_channels != in_channels else 0
    return _convolution(in_channels, out_channels, kernel=kernel, resample=resample, style=style)


def attend(qkv: Tensor, *, heads: int) -> Tensor:
    """Self-attention over pixels: softmax(q k / sqrt(width of a head)) v, the softmax in float32 whatever the type.

    `qkv` [B, 3C, H, W] holds, head by head and channel by channel, the triple (query, key, value).
    Returns [B, C, H, W].
    """
    rows, channels, height, width = qkv.shape
    triples = qkv.reshape(rows, heads, channels // (3 * heads), 3, height * width).unbind(3)
    mixed = (_fused_attention if qkv.is_cuda else _plain_attention)(*triples)
    return mixed.reshape(rows, channels // 3, height, width)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend in one kernel; all are [B, heads, width of a head, pixels]."""
    rows = (part.transpose(2, 3) for part in (query, key, value))
    # Contiguous, because the layers below would go on in the strides of this view, which is slow.
    return F.scaled_dot_product_attention(*rows).transpose(2, 3).contiguous()


def _plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend by two products, which is the faster way on a CPU; all are [B, heads, width of a head, pixels]."""
    logits = query.transpose(2, 3).to(torch.float32) @ (key / math.sqrt(key.shape[2])).to(torch.float32)
    return value @ logits.softmax(dim=3).to(value.dtype).transpose(2, 3)
