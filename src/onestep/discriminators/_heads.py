"""The trained part of a projected discriminator: one small convolutional critic a feature map.

Source: Projected GANs (arXiv:2111.01007); class conditioning by projection (arXiv:1802.05637) as in StyleGAN-XL
(arXiv:2202.00273). Names and numbers as in the D2O reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE = 0.2  # of every LeakyReLU
_EPSILON = 1e-12  # below which a vector of the power iteration counts as zero
_KERNEL = 4  # of every convolution
_CONDITION_WIDTH = 64  # channels in which a class is compared with the picture


class SpectralConv2d(nn.Module):
    """A 4x4 convolution whose weight, as a matrix [out, rest], is divided by its largest singular value.

    The value is tracked by one power iteration for each forward in training mode (Miyato et al., arXiv:1802.05957,
    algorithm 1); gradients reach it through the weight, not through the vectors.
    State dict: `weight_orig`, `weight_u`, `weight_v`, `bias`, as `torch.nn.utils.spectral_norm` names them.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, padding: int, bias: bool) -> None:
        super().__init__()
        initial = nn.Conv2d(channels_in, channels_out, kernel_size=_KERNEL, bias=bias)
        self.stride, self.padding = stride, padding
        self.weight_orig = initial.weight
        self.bias = initial.bias
        self.register_buffer("weight_u", _unit(torch.randn(channels_out)))
        self.register_buffer("weight_v", _unit(torch.randn(self._matrix().shape[1])))

    def forward(self, features: Tensor) -> Tensor:
        """Convolve [B, in, H, W]."""
        # In single precision whatever the convolution's: the singular value divides every weight.
        with torch.autocast(features.device.type, enabled=False):
            weight = self._normalised()
        return F.conv2d(features, weight, self.bias, stride=self.stride, padding=self.padding)

    def _normalised(self) -> Tensor:
        if self.training:
            self._iterate()
        # Copies: a second forward advances the vectors in place before the first one's backward reads them.
        u, v = self.weight_u.clone(), self.weight_v.clone()
        return self.weight_orig / torch.dot(u, torch.mv(self._matrix(), v))

    @torch.no_grad()
    def _iterate(self) -> None:
        self.weight_v.copy_(_unit(torch.mv(self._matrix().t(), self.weight_u)))
        self.weight_u.copy_(_unit(torch.mv(self._matrix(), self.weight_v)))

    def _matrix(self) -> Tensor:
        return self.weight_orig.flatten(1)


def _unit(vector: Tensor) -> Tensor:
    return F.normalize(vector, dim=0, eps=_EPSILON)


class _Down(nn.Module):
    """Half the size: convolution, batch norm, LeakyReLU.

    The batch norm sees the rows of one call on one rank, as in the reference: generated and real images apart.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            SpectralConv2d(channels_in, channels_out, stride=2, padding=1, bias=True),
            nn.BatchNorm2d(channels_out),
            nn.LeakyReLU(_SLOPE),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.main(features)


def _downs(widths: Sequence[int]) -> list[nn.Module]:
    return [_Down(before, after) for before, after in zip(widths[:-1], widths[1:], strict=True)]


class Head(nn.Module):
    """Halve until the end size, then a 4x4 convolution without padding to one channel of logits."""

    def __init__(self, widths: Sequence[int]) -> None:
        """Build for `widths`: channels of the input and after each halving."""
        super().__init__()
        self.main = nn.Sequential(*_downs(widths), SpectralConv2d(widths[-1], 1, stride=1, padding=0, bias=False))

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """Return logits [B, h w] of a feature map [B, C, H, W]; the labels are not looked at."""
        return self.main(features).flatten(1)


class ConditionalHead(nn.Module):
    """The same up to 64 channels, which are then compared with a vector of the class: the logit is their product.

    Each head has its own class table, and it is trained.
    """

    def __init__(self, widths: Sequence[int], *, embedding: Tensor) -> None:
        """Build for `widths`, as `Head`, with the class table starting at `embedding` [K, E]."""
        super().__init__()
        self.main = nn.Sequential(*_downs(widths))
        self.cls = SpectralConv2d(widths[-1], _CONDITION_WIDTH, stride=1, padding=0, bias=False)
        self.embed = nn.Embedding.from_pretrained(embedding.clone(), freeze=False)
        self.embed_proj = _Condition(embedding.shape[1], _CONDITION_WIDTH)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return logits [B, h w] of a feature map [B, C, H, W] under labels, one-hot [B, K]."""
        with torch.autocast(features.device.type, enabled=False):
            condition = self.embed_proj(self.embed(labels.argmax(dim=1)))
        maps = self.cls(self.main(features)).to(condition.dtype)
        return (maps * condition[:, :, None, None]).sum(dim=1).flatten(1) / math.sqrt(_CONDITION_WIDTH)


class _Condition(nn.Module):
    """A fully connected layer with a LeakyReLU, weight scale at run time (arXiv:1710.10196, section 4.1)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in))
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, vectors: Tensor) -> Tensor:
        gain = 1 / math.sqrt(self.weight.shape[1])
        return F.leaky_relu(F.linear(vectors, self.weight * gain, self.bias), _SLOPE) * math.sqrt(2)


class MultiScaleHeads(nn.Module):
    """One head for each of the mixed feature maps, all ending at the same size.

    State dict: `mini_discs.{i}.main.{j}.main.0.{weight_orig,weight_u,weight_v,bias}` (convolution of halving j of head
    i) and `.main.1.{weight,bias,running_mean,running_var,num_batches_tracked}` (its batch norm); then without classes
    `mini_discs.{i}.main.{last}.*`, with classes `mini_discs.{i}.{cls.*,embed.weight,embed_proj.{weight,bias}}`.
    """

    def __init__(
        self, *, in_channels: Sequence[int], resolutions: Sequence[int], channels: int, embedding: Tensor | None
    ) -> None:
        """Draw the weights from torch's generator.

        Args:
            in_channels: Channels of the maps, fine to coarse.
            resolutions: Nominal sizes of the maps, powers of two, each half the one before. A map may be smaller: the
                reference lays heads out for images of 256 pixels and shows them 224.
            channels: Width at the finest size; a head is as wide at a size as the maps are (64: 64, 64, 128, 256, 512).
            embedding: Initial class table [K, E]; None for heads that know no classes.
        """
        super().__init__()
        self.in_channels, self.resolutions = tuple(in_channels), tuple(resolutions)
        self.mini_discs = nn.ModuleList()
        for map_channels, resolution in zip(in_channels, resolutions, strict=True):
            widths = [map_channels, *self._widths_below(resolution, channels=channels)]
            self.mini_discs.append(Head(widths) if embedding is None else ConditionalHead(widths, embedding=embedding))

    def _widths_below(self, resolution: int, *, channels: int) -> list[int]:
        """Return the width after each halving from `resolution` to the end size."""
        end = end_resolution(self.resolutions[-1])
        first, last = (int(math.log2(self.resolutions[0] // size)) for size in (resolution, end))
        return [channels << max(level - 1, 0) for level in range(first + 1, last + 1)]

    def forward(self, features: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """Return logits [B, N], the heads' maps one after the other, fine to coarse."""
        return torch.cat([head(m, labels) for head, m in zip(self.mini_discs, features, strict=True)], dim=1)


def end_resolution(coarsest: int) -> int:
    """Return the nominal size at which heads stop halving: 8 as published, 4 where the coarsest map is 8 or less."""
    return 8 if coarsest > 8 else _KERNEL


def logits_of(sizes: Sequence[int], *, resolutions: Sequence[int]) -> int:
    """Return N for maps of the true `sizes` under heads laid out for the nominal `resolutions`.

    Raises:
        ValueError: A map would end with less than the last convolution needs.
    """
    end = end_resolution(resolutions[-1])
    shrink = [max(1, resolution // end) for resolution in resolutions]
    edges = [size // factor - _KERNEL + 1 for size, factor in zip(sizes, shrink, strict=True)]
    if min(edges) < 1:
        raise ValueError(f"feature maps of {list(sizes)} pixels end too small for a {_KERNEL}x{_KERNEL} convolution")
    return sum(edge * edge for edge in edges)
