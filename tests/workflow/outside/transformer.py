"""A small diffusion transformer (Peebles and Xie, arXiv:2212.09748) as a network from outside the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SmallTransformer"]


class Block(nn.Module):
    """Attention and MLP, modulated by the noise level."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulation = nn.Linear(width, 4 * width)

    def forward(self, tokens: Tensor, emb: Tensor) -> Tensor:
        """Return tokens [B, T, W]."""
        shift1, scale1, shift2, scale2 = self.modulation(F.silu(emb))[:, None].chunk(4, dim=-1)
        inner = self.norm1(tokens) * (1 + scale1) + shift1
        rows, count, width = inner.shape
        q, k, v = self.qkv(inner).view(rows, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(dim=-1) @ v
        tokens = tokens + self.proj(mixed.transpose(1, 2).reshape(rows, count, width))
        inner = self.norm2(tokens) * (1 + scale2) + shift2
        return tokens + self.fc2(F.gelu(self.fc1(inner)))


class SmallTransformer(nn.Module):
    """Patches, transformer blocks, patches.

    Args:
        img_resolution: H and W.
        img_channels: C.
        label_dim: Classes; 0 is unconditional.
        patch: Pixels per side of a patch.
        width: Of tokens.
        depth: Number of blocks.
        heads: Of attention.
    """

    freeze_levels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "mixing": ("model.blocks.*.proj.*", "model.blocks.*.fc[12].*"),
        "attention": ("model.blocks.*.qkv.*",),
    }
    block_layers: ClassVar[Mapping[str, tuple[str, str]]] = {"body": ("model.blocks.*", "fc2")}

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        patch: int = 4,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
    ) -> None:
        super().__init__()
        self.patch, self.side = patch, img_resolution // patch
        self.width = width
        self.patches = nn.Conv2d(img_channels, width, patch, stride=patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, self.side**2, width))
        self.noise = nn.Linear(width, width)
        self.classes = nn.Linear(label_dim, width) if label_dim else None
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.final = nn.Linear(width, patch * patch * img_channels)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return [B, C, H, W] from scaled images [B, C, H, W] and scaled noise levels [B]."""
        frequencies = torch.exp(torch.linspace(0, 4, self.width // 2, device=x.device))
        angles = noise.to(torch.float32)[:, None] * frequencies
        emb = self.noise(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.classes is not None and condition is not None:
            emb = emb + self.classes(condition)
        emb = emb.expand(len(x), -1)
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            tokens = block(tokens, emb)
        patches = self.final(tokens).view(len(x), self.side, self.side, -1, self.patch, self.patch)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, self.side * self.patch, self.side * self.patch)
