"""The trained heads of a projected discriminator: one small convolutional discriminator per feature map.

Sources: Projected GANs (arXiv:2111.01007); class conditioning by projection (arXiv:1802.05637) as in StyleGAN-XL
(arXiv:2202.00273). Names and sizes as in the D2O reference.
Legend: B images, C H W a feature map, K classes, E width of a class embedding, N logits per image.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE = 0.2  # of every LeakyReLU
_EPSILON = 1e-12  # smallest norm of a vector of the power iteration
_KERNEL = 4  # of every convolution
_CONDITION_WIDTH = 64  # channels of the projection on the class


class SpectralConv2d(nn.Module):
    """A 4x4 convolution whose weight, as a matrix [out, rest], is divided by its largest singular value.

    One power iteration per forward in training mode estimates the value (arXiv:1802.05957, algorithm 1); gradients pass
    through the weight, not through the vectors.
    State dict: `weight_orig`, `weight_u`, `weight_v`, `bias`, as in `torch.nn.utils.spectral_norm`.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, padding: int, bias: bool) -> None:
        super().__init__()
        initial = nn.Conv2d(channels_in, channels_out, kernel_size=_KERNEL, bias=bias)
        self.stride, self.padding = stride, padding
        self.weight_orig = initial.weight
        self.bias = initial.bias
        self.register_buffer("weight_u", _unit(torch.randn(channels_out)))
        self.register_buffer("weight_v", _unit(torch.randn(channels_in * _KERNEL**2)))

    def forward(self, features: Tensor) -> Tensor:
        """Convolve [B, in, H, W]."""
        # In float32 whatever the convolution's type: the singular value divides every weight.
        with torch.autocast(features.device.type, enabled=False):
            matrix = self.weight_orig.flatten(1)
            if self.training:
                with torch.no_grad():
                    self.weight_v.copy_(_unit(torch.mv(matrix.t(), self.weight_u)))
                    self.weight_u.copy_(_unit(torch.mv(matrix, self.weight_v)))
            # Copies, because a second forward changes the vectors in place before the first one's backward reads them.
            u, v = self.weight_u.clone(), self.weight_v.clone()
            weight = self.weight_orig / torch.dot(u, torch.mv(matrix, v))
        return F.conv2d(features, weight, self.bias, stride=self.stride, padding=self.padding)


def _unit(vector: Tensor) -> Tensor:
    return F.normalize(vector, dim=0, eps=_EPSILON)


def _downs(widths: Sequence[int]) -> list[nn.Module]:
    """Return downsamplings by two: convolution, batch norm, LeakyReLU.

    A batch norm normalises over the images of one call on one rank, as in the reference: generated and real images
    separately.
    """
    downs: list[nn.Module] = []
    for before, after in pairwise(widths):
        convolution = SpectralConv2d(before, after, stride=2, padding=1, bias=True)
        main = nn.Sequential(convolution, nn.BatchNorm2d(after), nn.LeakyReLU(_SLOPE))
        downs.append(nn.Sequential(OrderedDict(main=main)))  # for the reference's names
    return downs


class Head(nn.Module):
    """Downsampling to the end size, then a 4x4 convolution without padding to one channel of logits.

    `widths` are the channels of the input and after each downsampling.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.main = nn.Sequential(*_downs(widths), SpectralConv2d(widths[-1], 1, stride=1, padding=0, bias=False))

    def forward(self, features: Tensor, condition: Tensor | None) -> Tensor:
        """Return logits [B, h w] of a feature map [B, C, H, W]; the condition is not used."""
        return self.main(features).flatten(1)


class ConditionalHead(nn.Module):
    """A head whose logits are inner products of 64 channels with a vector of the class.

    Each head trains its own class table, initially `embedding` [K, E].
    """

    def __init__(self, widths: Sequence[int], *, embedding: Tensor) -> None:
        super().__init__()
        self.main = nn.Sequential(*_downs(widths))
        self.cls = SpectralConv2d(widths[-1], _CONDITION_WIDTH, stride=1, padding=0, bias=False)
        self.embed = nn.Embedding.from_pretrained(embedding.clone(), freeze=False)
        self.embed_proj = _EqualizedLinear(embedding.shape[1], _CONDITION_WIDTH)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Return logits [B, h w] of a feature map [B, C, H, W] and a condition, one-hot [B, K]."""
        with torch.autocast(features.device.type, enabled=False):
            vectors = self.embed_proj(self.embed(condition.argmax(dim=1)))
        maps = self.cls(self.main(features)).to(vectors.dtype)
        return (maps * vectors[:, :, None, None]).sum(dim=1).flatten(1) / math.sqrt(_CONDITION_WIDTH)


class _EqualizedLinear(nn.Module):
    """A fully connected layer with equalized learning rate (arXiv:1710.10196, section 4.1), then LeakyReLU."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in))
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, vectors: Tensor) -> Tensor:
        gain = 1 / math.sqrt(self.weight.shape[1])
        return F.leaky_relu(F.linear(vectors, self.weight * gain, self.bias), _SLOPE) * math.sqrt(2)


class MultiScaleHeads(nn.Module):
    """One head for each of the mixed feature maps, all with the same end size; state dict: see `Projected`."""

    def __init__(
        self, *, in_channels: Sequence[int], resolutions: Sequence[int], channels: int, embedding: Tensor | None
    ) -> None:
        """Draw the weights.

        `in_channels` and `resolutions` are the maps' channels and nominal sizes from fine to coarse: powers of two,
        each half the one before. A map may be smaller: the reference sizes heads for images of 256 pixels and runs
        them on 224. A head has at each size the width of the maps (`channels` 64: 64, 64, 128, 256, 512). `embedding`
        is the initial class table [K, E]; None for unconditional heads.
        """
        super().__init__()
        self.resolutions = tuple(resolutions)
        self.mini_discs = nn.ModuleList()
        last = int(math.log2(resolutions[0] // end_resolution(resolutions[-1])))
        for map_channels, resolution in zip(in_channels, resolutions, strict=True):
            first = int(math.log2(resolutions[0] // resolution))
            widths = [map_channels, *(channels << max(level - 1, 0) for level in range(first + 1, last + 1))]
            self.mini_discs.append(Head(widths) if embedding is None else ConditionalHead(widths, embedding=embedding))

    def forward(self, features: Sequence[Tensor], condition: Tensor | None) -> Tensor:
        """Return logits [B, N]: the maps of the heads, concatenated from fine to coarse."""
        return torch.cat([head(m, condition) for head, m in zip(self.mini_discs, features, strict=True)], dim=1)


def end_resolution(coarsest: int) -> int:
    """Return the nominal end size of the heads: 8 as published, 4 if the coarsest map is 8 or smaller."""
    return 8 if coarsest > 8 else _KERNEL


def logits_of(sizes: Sequence[int], *, resolutions: Sequence[int]) -> int:
    """Return N for maps of the true `sizes` and heads of nominal `resolutions`; ValueError: a map is too small."""
    end = end_resolution(resolutions[-1])
    shrink = [max(1, resolution // end) for resolution in resolutions]
    edges = [size // factor - _KERNEL + 1 for size, factor in zip(sizes, shrink, strict=True)]
    if min(edges) < 1:
        raise ValueError(
            f"resolution: got feature maps of {list(sizes)} pixels, too small for the heads' last convolution "
            f"({_KERNEL}x{_KERNEL}). Fix: a higher resolution"
        )
    return sum(edge * edge for edge in edges)
