"""Layers of EDM's two U-Nets, with EDM's state-dict names (Karras et al., arXiv:2206.00364, appendix F).

Legend: B images, C H W a feature map. Every layer casts its weights to the type of its input, so the image path may run
in half precision while the stored weights and the embedding path stay float32. Frozen weights may be cast once
(`cast_frozen_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.distributed import is_shard

Resample = Literal["up", "down", "down_last"]


class Init(NamedTuple):
    """Initialisation: distribution, and factors on weights and biases (0 means zeros, without a random draw)."""

    law: Literal["xavier_uniform", "kaiming_uniform", "kaiming_normal"] = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def draw(self, *shape: int, factor: float, fans: tuple[int, int]) -> nn.Parameter:
        """Return `factor` times random values of variance 1 / fan_in (kaiming) or 2 / (fan_in + fan_out) (xavier)."""
        if factor == 0:
            return nn.Parameter(torch.zeros(shape))
        variance = 2 / sum(fans) if self.law == "xavier_uniform" else 1 / fans[0]
        if self.law == "kaiming_normal":
            return nn.Parameter(torch.randn(shape) * (factor * math.sqrt(variance)))
        return nn.Parameter((torch.rand(shape) * 2 - 1) * (factor * math.sqrt(3 * variance)))


class Linear(nn.Module):
    """y = x W^T + b, from [B, in] to [B, out]."""

    def __init__(self, in_features: int, out_features: int, *, init: Init, bias: bool = True) -> None:
        super().__init__()
        fans = (in_features, out_features)
        self.weight = init.draw(out_features, in_features, factor=init.weight, fans=fans)
        self.bias = init.draw(out_features, factor=init.bias, fans=fans) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute y."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class GroupNorm(nn.GroupNorm):
    """Group normalisation with at least 4 channels a group and at most 32 groups, computed in float32."""

    def __init__(self, channels: int, *, eps: float) -> None:
        groups = min(32, channels // 4)
        if groups == 0 or channels % groups:
            raise ValueError(
                f"model_channels, channel_mult: got a layer of {channels} channels; expected a multiple of 4 up to 128 "
                "channels, of 32 above, for group normalisation"
            )
        super().__init__(groups, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]; the result has the type of `x`."""
        weight, bias = self.weight.to(torch.float32), self.bias.to(torch.float32)
        return F.group_norm(x.to(torch.float32), self.num_groups, weight, bias, self.eps).to(x.dtype)


class Conv2d(nn.Module):
    """Convolution of odd kernel that keeps the size, after resampling by two if `resample` is given.

    With kernel 0 resampling alone, without parameters. `down_last` convolves first, padded also for the filter, which
    so takes the convolved border: the side branch of the residual encoder.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        init: Init,
        resample: Resample | None = None,
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        self.resample, self.is_box = resample, tuple(resample_filter) == (1, 1)
        self.padding = kernel // 2 + ((len(resample_filter) - 1) // 2 if resample == "down_last" else 0)
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            fans = (in_channels * kernel**2, out_channels * kernel**2)
            self.weight = init.draw(out_channels, in_channels, kernel, kernel, factor=init.weight, fans=fans)
            self.bias = init.draw(out_channels, factor=init.bias, fans=fans)
        if resample is not None:
            self.register_buffer("resample_filter", low_pass(resample_filter))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H', W']."""
        # Downsampling with the box filter [1, 1] is a mean of four pixels, upsampling a copy: no convolution needed.
        if self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest") if self.is_box else upsample(x, self.resample_filter)
        elif self.resample == "down":
            x = F.avg_pool2d(x, 2) if self.is_box else downsample(x, self.resample_filter)
        if self.weight is None:
            return x
        x = F.conv2d(x, self._cast("weight", x.dtype), padding=self.padding)
        if self.resample == "down_last":
            x = downsample(x, self.resample_filter, padding=0)
        # In place; inside the convolution it would round differently from the reference, and save no time.
        return x.add_(self._cast("bias", x.dtype).reshape(-1, 1, 1))

    def _cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return the weight or the bias in a type: the copy of `cast_frozen_weights`, or a cast."""
        cast = getattr(self, f"{name}_cast", None)
        return cast if cast is not None and cast.dtype == dtype else getattr(self, name).to(dtype)


def cast_frozen_weights(network: nn.Module, *, dtype: torch.dtype) -> None:
    """Store copies in `dtype` of the frozen weights and biases of convolutions, so that no forward pass casts them.

    Call this when frozen weights are final and trained parameters require a gradient. State dicts do not change.
    """
    for layer in network.modules():
        if isinstance(layer, Conv2d):
            for name, parameter in list(layer.named_parameters(recurse=False)):
                # A rank has no whole tensor of those in shards.
                if not parameter.requires_grad and not is_shard(parameter):
                    layer.register_buffer(f"{name}_cast", parameter.detach().to(dtype), persistent=False)


def low_pass(taps: Sequence[int]) -> Tensor:
    """Return the separable filter of sum 1 with these `taps`, [1, 1, T, T]."""
    line = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(line, line) / line.sum() ** 2)[None, None]


def downsample(x: Tensor, kernel: Tensor, *, padding: int | None = None) -> Tensor:
    """Filter [B, C, H, W] by `kernel` [1, 1, T, T] and keep every second pixel."""
    channels, size = x.shape[1], kernel.shape[-1]
    weight = kernel.to(x.dtype).expand(channels, 1, size, size)
    return F.conv2d(x, weight, stride=2, padding=(size - 1) // 2 if padding is None else padding, groups=channels)


def upsample(x: Tensor, kernel: Tensor) -> Tensor:
    """Put zeros between the pixels of [B, C, H, W] and filter by four times `kernel` [1, 1, T, T]."""
    channels, size = x.shape[1], kernel.shape[-1]
    weight = (4 * kernel).to(x.dtype).expand(channels, 1, size, size)
    return F.conv_transpose2d(x, weight, stride=2, padding=(size - 1) // 2, groups=channels)


def positional_angles(noise: Tensor, *, count: int, endpoint: bool) -> Tensor:
    """Return `noise` [B] times `count` frequencies from 1 down to 1e-4 (included if `endpoint`), [B, count]."""
    steps = torch.arange(count, dtype=torch.float32, device=noise.device) / (count - endpoint)
    return torch.outer(noise, (1 / 10000) ** steps)


class FourierAngles(nn.Module):
    """`noise` [B] times fixed random frequencies of standard deviation 2 pi 16, [B, count]."""

    freqs: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(count) * 16)

    def forward(self, noise: Tensor) -> Tensor:
        """Map [B] to [B, count]."""
        return torch.outer(noise, (2 * math.pi * self.freqs).to(noise.dtype))
