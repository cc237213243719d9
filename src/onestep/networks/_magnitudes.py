"""Layers that preserve the magnitude of activations: the parts of EDM2's networks (Karras et al., arXiv:2312.02696).

Each returns activations of unit RMS for independent inputs of unit RMS, so no layer of normalisation is needed. Legend:
B images, C H W a feature map. As in `onestep.networks._layers`, every layer casts its weights to the type of its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.networks._layers import downsample, low_pass, upsample

_EPS = 1e-4
_SILU_RMS = 0.596  # of SiLU for standard normal inputs


def normalized(x: Tensor, *, dim: int | Sequence[int]) -> Tensor:
    """Return `x` divided by its RMS over the dimensions `dim`, which is computed in float32."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    rms = norm * math.sqrt(norm.numel() / x.numel())
    return x / (rms + _EPS).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """Return SiLU of `x` over its RMS for standard normal numbers."""
    return F.silu(x) / _SILU_RMS


def weighted_sum(a: Tensor, b: Tensor, *, t: float) -> Tensor:
    """Return (1 - t) a + t b, over its RMS for independent terms of unit RMS."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def concatenated(a: Tensor, b: Tensor, *, t: float) -> Tensor:
    """Concatenate the channels of two maps [B, C, H, W] with norms as 1 - t to t, whatever their numbers of them."""
    first, second = a.shape[1], b.shape[1]
    scale = math.sqrt((first + second) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(first)), b * (scale * t / math.sqrt(second))], dim=1)


def resampled(x: Tensor, *, mode: str | None, taps: Sequence[int]) -> Tensor:
    """Halve (`down`) or double (`up`) the resolution of [B, C, H, W] with a separable filter; None returns `x`."""
    if mode is None:
        return x
    if tuple(taps) == (1, 1):
        return F.avg_pool2d(x, 2) if mode == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
    kernel = low_pass(taps).to(x.device)
    return downsample(x, kernel) if mode == "down" else upsample(x, kernel)


class Fourier(nn.Module):
    """sqrt(2) cos(s freqs + phases) of numbers s [B], with fixed random frequencies and phases, [B, count]."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(count))
        self.register_buffer("phases", 2 * math.pi * torch.rand(count))

    def forward(self, s: Tensor) -> Tensor:
        """Map [B] to [B, count], in the type of `s`."""
        angles = torch.outer(s.to(torch.float32), self.freqs.to(torch.float32)) + self.phases.to(torch.float32)
        return (math.sqrt(2) * angles.cos()).to(s.dtype)


class UnitWeights(nn.Module):
    """A linear layer [B, in] -> [B, out] without `kernel`, else a convolution of odd kernel that keeps the size.

    It has no bias. What it computes depends on the direction of each output's weights alone, of which the forward pass
    takes those of unit norm. `after_step` writes them back.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: tuple[int, int] | tuple[()] = ()) -> None:
        super().__init__()
        self.padding = kernel[0] // 2 if kernel else 0
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, *, gain: Tensor | float = 1.0) -> Tensor:
        """Map `x`, times a `gain`."""
        weight = self.weight.to(torch.float32)
        # First the two scalars: the product with a gain of few numbers is cheap.
        scale = gain / math.sqrt(weight[0].numel())
        weight = (normalized(weight, dim=_inputs(weight)) * scale).to(x.dtype)
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=self.padding)

    @torch.no_grad()
    def after_step(self) -> None:
        """Set trained weights to those of unit RMS for each output: see `onestep.networks.Network`.

        Differs from the reference: there each forward pass in training mode does so. Once after a step is the same for
        the next one, also where gradients accumulate over several passes, and averages follow the weights of unit RMS.
        """
        if self.weight.requires_grad:
            self.weight.copy_(normalized(self.weight, dim=_inputs(self.weight)))


def _inputs(weight: Tensor) -> list[int]:
    return list(range(1, weight.ndim))
