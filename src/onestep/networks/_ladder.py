"""The ladder of a U-Net: which blocks stand on which level, under which name, and how they run down and up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onestep.networks._blocks import BlockStyle, UNetBlock
from onestep.networks._layers import Conv2d, ConvDownsample2d


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The levels of a U-Net from fine to coarse, each half the resolution of the one before.

    Attributes:
        img_resolution: Pixels a side of the finest level.
        widths: Channels of the blocks of each level.
        blocks: Blocks a level on the way down; on the way up there is one more.
        attn_resolutions: The resolutions that have attention.
        attn_blocks_up: Which blocks on the way up have it there; on the way down all have.
        style: What all blocks have in common.
    """

    img_resolution: int
    widths: tuple[int, ...]
    blocks: int
    attn_resolutions: tuple[int, ...]
    attn_blocks_up: tuple[int, ...]
    style: BlockStyle

    def __post_init__(self) -> None:
        factor = 1 << max(len(self.widths) - 1, 0)
        if not self.widths or self.img_resolution % factor:
            raise ValueError(
                f"channel_mult has {len(self.widths)} levels, each half the resolution of the one before: "
                f"that needs a resolution divisible by {factor}, not {self.img_resolution}"
            )

    def levels(self) -> list[tuple[str, int, bool]]:
        """Return name, channels and attention of each level, from fine to coarse."""
        sizes = [self.img_resolution >> level for level in range(len(self.widths))]
        return [(f"{n}x{n}", width, n in self.attn_resolutions) for n, width in zip(sizes, self.widths, strict=True)]


def encoder(ladder: Ladder, *, img_channels: int, width: int, residual: bool) -> tuple[nn.ModuleDict, list[int]]:
    """Build the way down, which starts with a convolution from the image to `width` channels.

    Returns:
        The blocks by name, and the channels of each map they leave for the way up. With `residual`, each halving
        has a branch beside it that carries the image down (the progressive input of NCSN++, arXiv:2011.13456).
    """
    style, blocks = ladder.style, nn.ModuleDict()
    channels, beside, left = width, img_channels, [width]
    for level, (at, level_width, attention) in enumerate(ladder.levels()):
        if level == 0:
            blocks[f"{at}_conv"] = Conv2d(img_channels, width, kernel=3, init=style.init)
        else:
            blocks[f"{at}_down"] = UNetBlock(channels, channels, style=style, resample="down")
            left.append(channels)
        if level > 0 and residual:
            blocks[f"{at}_aux_residual"] = ConvDownsample2d(
                beside, channels, kernel=3, resample_filter=style.resample_filter, init=style.init
            )
            beside = channels
        for index in range(ladder.blocks):
            blocks[f"{at}_block{index}"] = UNetBlock(channels, level_width, style=style, attention=attention)
            channels = level_width
            left.append(channels)
    return blocks, left


def decoder(ladder: Ladder, *, left: list[int]) -> nn.ModuleDict:
    """Build the way up, whose blocks take the maps of `left` channels, the last one first, beside their input."""
    style, blocks, left = ladder.style, nn.ModuleDict(), list(left)
    channels = left[-1]
    for level, (at, level_width, attention) in reversed(list(enumerate(ladder.levels()))):
        if level == len(ladder.widths) - 1:
            blocks[f"{at}_in0"] = UNetBlock(channels, channels, style=style, attention=True)
            blocks[f"{at}_in1"] = UNetBlock(channels, channels, style=style)
        else:
            blocks[f"{at}_up"] = UNetBlock(channels, channels, style=style, resample="up")
        for index in range(ladder.blocks + 1):
            here = attention and index in ladder.attn_blocks_up
            blocks[f"{at}_block{index}"] = UNetBlock(channels + left.pop(), level_width, style=style, attention=here)
            channels = level_width
    return blocks


def descend(blocks: nn.ModuleDict, x: Tensor, emb: Tensor) -> list[Tensor]:
    """Run the way down on images [B, C, H, W]; return the maps it leaves."""
    beside, left = x, []
    for block in blocks.values():
        if isinstance(block, UNetBlock):
            left.append(block(left[-1], emb))
        elif isinstance(block, ConvDownsample2d):
            beside = left[-1] = (left[-1] + block(beside)) / math.sqrt(2)
        else:
            left.append(block(x))
    return left


def ascend(blocks: nn.ModuleDict, left: list[Tensor], emb: Tensor) -> Tensor:
    """Run the way up from the last map of `left` (consumed); return the finest map."""
    x = left[-1]
    for block in blocks.values():
        if isinstance(block, UNetBlock):
            beside = x if x.shape[1] == block.in_channels else torch.cat([x, left.pop()], dim=1)
            x = block(beside, emb)
    return x
