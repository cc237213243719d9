"""The trained heads of a projected discriminator: one small convolutional discriminator per feature map.

Sources: Projected GANs (arXiv:2111.01007); class conditioning by projection (arXiv:1802.05637) as in StyleGAN-XL
(arXiv:2202.00273). Names and sizes as in the D2O reference.
Legend: B images, C H W a feature map, K classes, E width of a class embedding, N logits per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE = 0.2  # of every LeakyReLU
_EPSILON = 1e-12  # smallest norm of a vector of the power iteration
_KERNEL = 4  # of every convolution
_CONDITION_WIDTH = 64  # channels of the projection on the class


class SpectralConv2d(nn.Module):
    """A 4x4 convolution whose weight, as a matrix [out, rest], is divided by its largest singular value.

    One power iteration per forward in training mode estimates the value (Miyato et al., arXiv:1802.05957, algorithm
    1); gradients pass through the weight, not through the vectors.
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
        self.register_buffer("weight_v", _unit(torch.randn(self._matrix().shape[1])))

    def forward(self, features: Tensor) -> Tensor:
        """Convolve [B, in, H, W]."""
        # In float32 whatever the convolution's type: the singular value divides every weight.
        with torch.autocast(features.device.type, enabled=False):
            weight = self._normalised()
        return F.conv2d(features, weight, self.bias, stride=self.stride, padding=self.padding)

    def _normalised(self) -> Tensor:
        if self.training:
            self._iterate()
        # Copies, because a second forward changes the vectors in place before the first one's backward reads them.
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
    """Downsampling by two: convolution, batch norm, LeakyReLU.

    The batch norm normalises over the images of one call on one rank, as in the reference: generated and real images
    separately.
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
    """Downsampling to the end size, then a 4x4 convolution without padding to one channel of logits."""

    def __init__(self, widths: Sequence[int]) -> None:
        """Build for `widths`: channels of the input and after each downsampling."""
        super().__init__()
        self.main = nn.Sequential(*_downs(widths), SpectralConv2d(widths[-1], 1, stride=1, padding=0, bias=False))

    def forward(self, features: Tensor, condition: Tensor | None) -> Tensor:
        """Return logits [B, h w] of a feature map [B, C, H, W]; the condition is not used."""
        return self.main(features).flatten(1)


class ConditionalHead(nn.Module):
    """A head whose logits are inner products of 64 channels with a vector of the class.

    Each head trains its own class table.
    """

    def __init__(self, widths: Sequence[int], *, embedding: Tensor) -> None:
        """Build for `widths`, as `Head`, with the initial class table `embedding` [K, E]."""
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
    """One head for each of the mixed feature maps, all with the same end size.

    State dict: `mini_discs.{i}.main.{j}.main.0.{weight_orig,weight_u,weight_v,bias}` (convolution of downsampling j of
    head i) and `.main.1.{weight,bias,running_mean,running_var,num_batches_tracked}` (its batch norm); then without
    classes `mini_discs.{i}.main.{last}.*`, with classes `mini_discs.{i}.{cls.*,embed.weight,embed_proj.{weight,bias}}`.
    """

    def __init__(
        self, *, in_channels: Sequence[int], resolutions: Sequence[int], channels: int, embedding: Tensor | None
    ) -> None:
        """Draw the weights from torch's generator.

        Args:
            in_channels: Channels of the maps, from fine to coarse.
            resolutions: Nominal sizes of the maps, powers of two, each half the one before. A map may be smaller: the
                reference sizes heads for images of 256 pixels and runs them on 224.
            channels: Width at the finest size; a head has at each size the width of the maps (64: 64, 64, 128, 256,
                512).
            embedding: Initial class table [K, E]; None for unconditional heads.
        """
        super().__init__()
        self.in_channels, self.resolutions = tuple(in_channels), tuple(resolutions)
        self.mini_discs = nn.ModuleList()
        for map_channels, resolution in zip(in_channels, resolutions, strict=True):
            widths = [map_channels, *self._widths_below(resolution, channels=channels)]
            self.mini_discs.append(Head(widths) if embedding is None else ConditionalHead(widths, embedding=embedding))

    def _widths_below(self, resolution: int, *, channels: int) -> list[int]:
        """Return the width after each downsampling from `resolution` to the end size."""
        end = end_resolution(self.resolutions[-1])
        first, last = (int(math.log2(self.resolutions[0] // size)) for size in (resolution, end))
        return [channels << max(level - 1, 0) for level in range(first + 1, last + 1)]

    def forward(self, features: Sequence[Tensor], condition: Tensor | None) -> Tensor:
        """Return logits [B, N]: the maps of the heads, concatenated from fine to coarse."""
        return torch.cat([head(m, condition) for head, m in zip(self.mini_discs, features, strict=True)], dim=1)


def end_resolution(coarsest: int) -> int:
    """Return the nominal end size of the heads: 8 as published, 4 if the coarsest map is 8 or smaller."""
    return 8 if coarsest > 8 else _KERNEL


def logits_of(sizes: Sequence[int], *, resolutions: Sequence[int]) -> int:
    """Return N for maps of the true `sizes` and heads sized for the nominal `resolutions`.

    Raises:
        ValueError: A map is too small for the last convolution.
    """
    end = end_resolution(resolutions[-1])
    shrink = [max(1, resolution // end) for resolution in resolutions]
    edges = [size // factor - _KERNEL + 1 for size, factor in zip(sizes, shrink, strict=True)]
    if min(edges) < 1:
        raise ValueError(
            f"resolution: got feature maps of {list(sizes)} pixels, too small for the heads' last convolution "
            f"({_KERNEL}x{_KERNEL}). Fix: a higher resolution"
        )
    return sum(edge * edge for edge in edges)
