"""The parts of EDM's two U-Nets: blocks, encoder, decoder (Karras et al., arXiv:2206.00364, appendix F).

Legend: B images, C H W a feature map, E the width of the embedding of noise level and condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from onestep.networks._layers import Conv2d, GroupNorm, Init, Linear, Resample


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


def run_block(run: Callable[..., Tensor], *inputs: Tensor, recompute: bool, random: bool = False) -> Tensor:
    """Run a block; with `recompute`, the backward pass computes its activations again, from its inputs.

    With `random`, the masks of its dropout are then drawn again from the same state of the generator.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(_with_kernels_of_now(run), *inputs, use_reentrant=False, preserve_rng_state=random)
    return run(*inputs)


def _with_kernels_of_now(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Limit a block to the kernels of attention that are allowed now, for when it runs again in the backward pass."""
    enabled = {
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled,
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled,
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled,
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled,
    }
    if torch.compiler.is_compiling() or all(is_enabled() for is_enabled in enabled.values()):
        return run
    allowed = [kernel for kernel, is_enabled in enabled.items() if is_enabled()]

    def limited(*inputs: Tensor) -> Tensor:
        with sdpa_kernel(allowed):
            return run(*inputs)

    return limited


class UNetBlock(nn.Module):
    """Two convolutions, conditioned on the embedding, with a shortcut; then self-attention with a shortcut, or none.

    Attributes:
        recompute: Whether the backward pass computes the block's activations again, from its input.
    """

    recompute = False

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
        random = self.training and self.style.dropout > 0
        return run_block(self._run, x, emb, recompute=self.recompute, random=random)

    def _run(self, x: Tensor, emb: Tensor) -> Tensor:
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
) -> Conv2d:
    taps = style.resample_filter
    return Conv2d(in_channels, out_channels, kernel=kernel, init=style.init, resample=resample, resample_filter=taps)


def attend(qkv: Tensor, *, heads: int) -> Tensor:
    """Self-attention over pixels: softmax(q k / sqrt(head width)) v, with the softmax in float32.

    `qkv` [B, 3C, H, W] holds, head by head and channel by channel, the triple (query, key, value). Return [B, C, H, W].
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


def build_unet(
    *,
    img_resolution: int,
    img_channels: int,
    widths: Sequence[int],
    blocks: int,
    attn_resolutions: Sequence[int],
    decoder_attn_blocks: Sequence[int],
    style: BlockStyle,
    first_width: int | None = None,
    residual: bool = False,
) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Build encoder and decoder; `widths` are those of the levels, each of half the resolution of the one before.

    A convolution maps the image to `first_width` channels, by default those of the finest level. Each level has
    `blocks` blocks in the encoder, and one more in the decoder, where those of the indices `decoder_attn_blocks` have
    attention at `attn_resolutions`; in the encoder all have it there. With `residual`, each downsampling has a side
    branch that carries the image down (the progressive input of NCSN++, arXiv:2011.13456).
    """
    factor = 1 << max(len(widths) - 1, 0)
    if not widths or img_resolution % factor:
        raise ValueError(
            f"channel_mult: got {len(widths)} levels, each of half the resolution of the one before, for images of "
            f"{img_resolution} pixels; expected at least one level and a resolution divisible by {factor}"
        )
    # A power of two that is no level's is allowed: the published defaults have such for small images.
    for size in attn_resolutions:
        if size & (size - 1) and size not in [img_resolution >> level for level in range(len(widths))]:
            raise ValueError(f"attn_resolutions: got {size}, which is the resolution of no level of {img_resolution}")
    sizes = [img_resolution >> level for level in range(len(widths))]
    levels = [(f"{n}x{n}", width, n in attn_resolutions) for n, width in zip(sizes, widths, strict=True)]
    encoder = nn.ModuleDict()
    channels, image_channels = first_width or widths[0], img_channels
    skips = [channels]  # channels of the maps that the decoder takes
    for level, (at, level_width, attention) in enumerate(levels):
        if level == 0:
            encoder[f"{at}_conv"] = Conv2d(img_channels, channels, kernel=3, init=style.init)
        else:
            encoder[f"{at}_down"] = UNetBlock(channels, channels, style=style, resample="down")
            skips.append(channels)
        if level > 0 and residual:
            side = _convolution(image_channels, channels, kernel=3, resample="down_last", style=style)
            encoder[f"{at}_aux_residual"] = side
            image_channels = channels
        for index in range(blocks):
            encoder[f"{at}_block{index}"] = UNetBlock(channels, level_width, style=style, attention=attention)
            channels = level_width
            skips.append(channels)
    return encoder, _decoder(levels, skips=skips, blocks=blocks + 1, attention=decoder_attn_blocks, style=style)


def _decoder(
    levels: list[tuple[str, int, bool]], *, skips: list[int], blocks: int, attention: Sequence[int], style: BlockStyle
) -> nn.ModuleDict:
    decoder, channels = nn.ModuleDict(), skips[-1]
    for level, (at, width, has_attention) in enumerate(reversed(levels)):
        if level == 0:
            decoder[f"{at}_in0"] = UNetBlock(channels, channels, style=style, attention=True)
            decoder[f"{at}_in1"] = UNetBlock(channels, channels, style=style)
        else:
            decoder[f"{at}_up"] = UNetBlock(channels, channels, style=style, resample="up")
        for index in range(blocks):
            attends = has_attention and index in attention
            decoder[f"{at}_block{index}"] = UNetBlock(channels + skips.pop(), width, style=style, attention=attends)
            channels = width
    return decoder


def run_encoder(encoder: nn.ModuleDict, x: Tensor, emb: Tensor) -> list[Tensor]:
    """Run the encoder on images [B, C, H, W]; return the maps that the decoder takes, the coarsest last."""
    skips: list[Tensor] = []
    image = x
    for block in encoder.values():
        if isinstance(block, UNetBlock):
            skips.append(block(skips[-1], emb))
        elif isinstance(block, Conv2d) and block.resample is not None:
            image = skips[-1] = (skips[-1] + block(image)) / math.sqrt(2)
        else:
            skips.append(block(x))
    return skips


def level_maps(skips: Sequence[Tensor], *, levels: int) -> tuple[Tensor, ...]:
    """Return the last map of each level of an encoder, the finest first, of all that `run_encoder` returned."""
    each = len(skips) // levels
    return tuple(skips[each - 1 :: each])


def run_decoder(decoder: nn.ModuleDict, skips: list[Tensor], emb: Tensor) -> Tensor:
    """Run the decoder on the maps of `run_encoder`, which it takes from the list; return its finest map."""
    x = skips[-1]
    for block in decoder.values():
        if isinstance(block, UNetBlock):
            x = block(x if x.shape[1] == block.in_channels else torch.cat([x, skips.pop()], dim=1), emb)
    return x


class EdmUNet(nn.Module):
    """The passes of EDM's two networks, which differ in their embedding and in their last layers.

    Attributes:
        map_shapes: Channels and size of the last map of each level, the finest first.
    """

    enc: nn.ModuleDict
    dec: nn.ModuleDict
    map_shapes: tuple[tuple[int, int], ...]

    def forward(
        self, x: Tensor, noise: Tensor, condition: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Run the network, in the type of `x`: see `onestep.networks.Network`."""
        emb = self._embed(noise, condition, augment_labels)
        return self._end(run_decoder(self.dec, run_encoder(self.enc, x, emb), emb))

    def encode(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Run the encoder alone: see `onestep.networks.Network`."""
        return run_encoder(self.enc, x, self._embed(noise, condition, None))[-1]

    def with_maps(
        self, x: Tensor, noise: Tensor, condition: Tensor | None = None, *, stop_early: bool
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Run the network, or the encoder alone, and return its maps, too: see `onestep.networks.Network`."""
        emb = self._embed(noise, condition, None)
        skips = run_encoder(self.enc, x, emb)
        maps = level_maps(skips, levels=len(self.map_shapes))
        return None if stop_early else self._end(run_decoder(self.dec, skips, emb)), maps

    def _embed(self, noise: Tensor, condition: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Return the embedding [B, E], or [1, E] of one noise level and no condition."""
        raise NotImplementedError

    def _end(self, x: Tensor) -> Tensor:
        """Return the output of the network, of the decoder's finest map."""
        raise NotImplementedError


def condition_dropped(condition: Tensor | None, *, probability: float, training: bool) -> Tensor:
    """Set rows of a condition [B, K] to zero at random, in training mode."""
    assert condition is not None, "a conditional network takes a condition"
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
