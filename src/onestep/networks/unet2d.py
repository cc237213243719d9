"""The U-Net of DDPM (arXiv:2006.11239, appendix B) in the form and with the names of diffusers' UNet2DModel.

Legend: B images, C H W a feature map, E the width of the embedding of noise level and condition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.config.constraints import Constraint, Few, Positive, ShareBelowOne, Width
from onestep.networks._unet import fused_attention, plain_attention, run_block

__all__ = ["UNet2D"]

DownBlock = Literal["DownBlock2D", "AttnDownBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D"]
_Levels = Constraint(min_length=1, max_length=12)


class _Style(NamedTuple):
    """The options that all blocks share."""

    emb_channels: int  # E
    groups: int  # of the group normalisation
    eps: float
    head_width: int | None  # channels of an attention head; None for one head of all channels
    dropout: float


class UNet2D(nn.Module):
    """The network of UNet2DModel, for the options of its config.json listed here; the defaults are DDPM's on CIFAR-10.

    Args:
        img_resolution: H and W of the images.
        img_channels: Channels of input and output.
        label_dim: Width of the condition, one-hot classes; 0 for an unconditional network.
        block_out_channels: Width of each level, from fine to coarse; each level halves the resolution.
        layers_per_block: Residual blocks of each level going down; one more going up.
        down_block_types: Of each level going down, `AttnDownBlock2D` with self-attention after each residual block.
        up_block_types: Of each level going up, from coarse to fine.
        norm_num_groups: Groups of each normalisation, a divisor of all widths.
        norm_eps: Added to the variance by each normalisation.
        attention_head_dim: Channels of an attention head; None for one head of all channels.
        downsample_padding: 0 pads a pixel right and below before a convolution of stride 2, 1 a pixel on each side.
        flip_sin_to_cos: Whether the cosines of the noise level's embedding come first.
        freq_shift: How many frequencies less the exponents of the embedding are divided by.
        dropout: Probability before the second convolution of a block.

    Raises:
        ValueError: The options do not fit each other or the resolution.
    """

    freeze_levels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "conv": ("model.*_block*.conv[12.]*",),  # of residual blocks, and of resampling; not conv_shortcut
        "proj": ("model.*.to_out.0.*",),
        "qkv": ("model.*.to_[qkv].*",),
        "skip": ("model.*.conv_shortcut.*",),
        "encoder": ("model.down_blocks.*",),
        "decoder": ("model.mid_block.*", "model.up_blocks.*"),
        "all_but_norms": ("*", "!model.*norm*", "!model.*.time_emb_proj.*"),  # trains norms and the embedding's shifts
    }
    block_layers: ClassVar[Mapping[str, tuple[str, str]]] = {
        "encoder": ("model.down_blocks.*.resnets.*", "conv2"),
        "decoder": ("model.[mu]*_block*.resnets.*", "conv2"),
    }
    decoder_parts: ClassVar[tuple[str, ...]] = ("up_blocks", "mid_block", "conv_norm_out", "conv_out")

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        block_out_channels: Annotated[tuple[Width, ...], _Levels] = (128, 256, 256, 256),
        layers_per_block: Few = 2,
        down_block_types: Annotated[tuple[DownBlock, ...], _Levels] = (
            "DownBlock2D",
            "AttnDownBlock2D",
            "DownBlock2D",
            "DownBlock2D",
        ),
        up_block_types: Annotated[tuple[UpBlock, ...], _Levels] = (
            "UpBlock2D",
            "UpBlock2D",
            "AttnUpBlock2D",
            "UpBlock2D",
        ),
        norm_num_groups: Few = 32,
        norm_eps: Positive = 1e-6,
        attention_head_dim: Width | None = None,
        downsample_padding: Literal[0, 1] = 0,
        flip_sin_to_cos: bool = False,
        freq_shift: Literal[0, 1] = 1,
        dropout: ShareBelowOne = 0.0,
    ) -> None:
        super().__init__()
        widths = tuple(block_out_channels)
        _check(widths, (down_block_types, up_block_types), img_resolution, norm_num_groups, attention_head_dim)
        first, last = widths[0], len(widths) - 1
        style = _Style(4 * first, norm_num_groups, norm_eps, attention_head_dim, dropout)
        self.frequencies, self.flip_sin_to_cos, self.freq_shift = first // 2, flip_sin_to_cos, freq_shift
        self.conv_in = nn.Conv2d(img_channels, first, 3, padding=1)
        self.time_embedding = _TimeEmbedding(first, style.emb_channels)
        self.class_embedding = nn.Embedding(label_dim, style.emb_channels) if label_dim else None
        self.down_blocks = nn.ModuleList()
        kept = [first]  # channels of the maps that the way up takes
        for level, (above, width) in enumerate(pairwise((first, *widths))):
            inputs = [above, *[width] * (layers_per_block - 1)]
            attends = down_block_types[level] == "AttnDownBlock2D"
            shrink = None if level == last else _Downsample(width, padding=downsample_padding)
            self.down_blocks.append(_Level(inputs, width, attends=attends, downsamplers=shrink, style=style))
            kept += [width] * (layers_per_block + (level < last))
        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for level, width in enumerate(reversed(widths)):
            inputs = [(width if index else below) + kept.pop() for index in range(layers_per_block + 1)]
            attends = up_block_types[level] == "AttnUpBlock2D"
            enlarge = None if level == last else _Upsample(width)
            self.up_blocks.append(_Level(inputs, width, attends=attends, upsamplers=enlarge, style=style))
            below = width
        self.mid_block = _Level([widths[-1]] * 2, widths[-1], attends=True, between=True, style=style)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, norm_eps)
        self.conv_out = nn.Conv2d(first, img_channels, 3, padding=1)
        self.encoded = widths[-1], img_resolution >> last

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Run the network; `noise` is what the law makes of the noise level: see `onestep.networks.Network`."""
        emb = self._embed(noise, condition)
        kept = self._down(x, emb)
        x = self.mid_block(kept[-1], emb)[-1]
        for level in self.up_blocks:
            x = level(x, emb, joined=kept)[-1]
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def encode(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Run the way down alone: see `onestep.networks.Network`."""
        return self._down(x, self._embed(noise, condition))[-1]

    def _down(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        kept = [self.conv_in(x)]
        for level in self.down_blocks:
            kept += level(kept[-1], emb)
        return kept

    def _embed(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Return the embedding [B, E] after its last activation, which every block begins with."""
        steps = torch.arange(self.frequencies, dtype=torch.float32, device=noise.device)
        rates = (steps * (-math.log(10_000) / (self.frequencies - self.freq_shift))).exp()
        angles = torch.outer(noise.to(torch.float32), rates)
        parts = (angles.cos(), angles.sin()) if self.flip_sin_to_cos else (angles.sin(), angles.cos())
        emb = self.time_embedding(torch.cat(parts, dim=1))
        if self.class_embedding is not None:
            assert condition is not None, "a conditional network takes a condition"
            emb = emb + condition @ self.class_embedding.weight
        return F.silu(emb)


def _check(
    widths: Sequence[int], types: tuple[Sequence[str], ...], resolution: int, groups: int, head_width: int | None
) -> None:
    for name, given in zip(("down_block_types", "up_block_types"), types, strict=True):
        if len(given) != len(widths):
            raise ValueError(f"{name}: got {len(given)}, expected {len(widths)}, one for each of block_out_channels")
    factor = 1 << (len(widths) - 1)
    if not widths or resolution % factor:
        found = f"got {len(widths)} levels for images of {resolution} pixels"
        raise ValueError(f"block_out_channels: {found}, expected a resolution divisible by {factor}")
    if odd := [width for width in widths if width % groups]:
        raise ValueError(f"norm_num_groups: got {groups}, expected a divisor of the width {odd[0]}")
    if widths[0] < 4 or widths[0] % 2:
        raise ValueError(f"block_out_channels: got {widths[0]} as the first width, expected an even one from 4 on")
    if head_width is not None and (odd := [width for width in widths if width % head_width]):
        raise ValueError(f"attention_head_dim: got {head_width}, expected a divisor of the width {odd[0]}")


class _TimeEmbedding(nn.Module):
    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, emb_channels)
        self.linear_2 = nn.Linear(emb_channels, emb_channels)

    def forward(self, angles: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(angles)))


class _Level(nn.Module):
    """Residual blocks at one resolution, each followed by its attention where there is any, then a resampling.

    `between` is the middle of the network: attention after all residual blocks but the last.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        width: int,
        *,
        attends: bool,
        style: _Style,
        downsamplers: nn.Module | None = None,
        upsamplers: nn.Module | None = None,
        between: bool = False,
    ) -> None:
        super().__init__()
        # In the order of diffusers, which is that of its state dicts.
        if attends:
            self.attentions = nn.ModuleList(_Attention(width, style=style) for _ in inputs[: -1 if between else None])
        self.resnets = nn.ModuleList(_Residual(channels, width, style=style) for channels in inputs)
        if downsamplers is not None:
            self.downsamplers = nn.ModuleList([downsamplers])
        if upsamplers is not None:
            self.upsamplers = nn.ModuleList([upsamplers])

    def forward(self, x: Tensor, emb: Tensor, *, joined: list[Tensor] | None = None) -> list[Tensor]:
        """Return the maps after each block and after the resampling; each takes the last of `joined`, if given."""
        attentions, maps = list(getattr(self, "attentions", ())), []
        for index, block in enumerate(self.resnets):
            x = block(x if joined is None else torch.cat([x, joined.pop()], dim=1), emb)
            if index < len(attentions):
                x = attentions[index](x)
            maps.append(x)
        for resample in (*getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())):
            maps.append(resample(x))
        return maps


class _Residual(nn.Module):
    """Two convolutions, with the embedding added between them, and a shortcut."""

    recompute = False

    def __init__(self, in_channels: int, out_channels: int, *, style: _Style) -> None:
        super().__init__()
        self.dropout = style.dropout
        self.norm1 = nn.GroupNorm(style.groups, in_channels, style.eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(style.emb_channels, out_channels)
        self.norm2 = nn.GroupNorm(style.groups, out_channels, style.eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map [B, in, H, W] with embeddings [B, E] (or [1, E]) to [B, out, H, W]."""
        random = self.training and self.dropout > 0
        return run_block(self._run, x, emb, recompute=self.recompute, random=random)

    def _run(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(emb)[:, :, None, None]
        h = self.conv2(F.dropout(F.silu(self.norm2(h)), self.dropout, self.training))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class _Attention(nn.Module):
    """Self-attention over pixels, with a shortcut."""

    recompute = False

    def __init__(self, channels: int, *, style: _Style) -> None:
        super().__init__()
        self.heads = channels // (style.head_width or channels)
        self.group_norm = nn.GroupNorm(style.groups, channels, style.eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return run_block(self._run, x, recompute=self.recompute)

    def _run(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        parts = (
            each(tokens).transpose(1, 2).reshape(rows, self.heads, channels // self.heads, height * width)
            for each in (self.to_q, self.to_k, self.to_v)
        )
        mixed = (fused_attention if x.is_cuda else plain_attention)(*parts)
        out = self.to_out[0](mixed.reshape(rows, channels, height * width).transpose(1, 2))
        return out.transpose(1, 2).reshape(rows, channels, height, width) + x


class _Downsample(nn.Module):
    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
