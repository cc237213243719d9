"""StyleGAN2's residual discriminator, trained whole from random weights (arXiv:1912.04958, section 4.1 and appendix B).

Class conditioning as in StyleGAN2-ADA (arXiv:2006.06676). Names and sizes as in the D2O reference, which contains this
network and does not use it in its scripts.
Legend: B images, C H W an image or a feature map, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onestep.arithmetic import half_products
from onestep.config.constraints import Constraint, SmallCount
from onestep.discriminators import Compiler, ExecutionView, seeded

__all__ = ["StyleGan2"]

_SLOPE = 0.2  # of every LeakyReLU, whose result is multiplied by sqrt(2)
_END = 4  # pixels, where the convolutions end
_FILTER = (1.0, 3.0, 3.0, 1.0)  # before each downsampling, in each direction
_DEPTH, _RATE = 8, 0.01  # layers of the mapping of classes, and the factor on their learning rate
_EPSILON = 1e-8


class StyleGan2(nn.Module):
    """Residual blocks from the images' size down to 4x4 pixels, minibatch standard deviation, two linear layers.

    There is no frozen part: `frozen_features` are the images, and both ways to the R1 gradient differentiate the whole
    network twice. One logit for an image. A conditional logit is the inner product of the last layer with a mapped
    class. Weights have equalized learning rates.

    State dict: `b{size}.{fromrgb,conv0,conv1,skip}`, for conditional ones `mapping.{embed,fc0..fc7}`, and
    `b4.{conv,fc,out}`, each with `weight` and, but for `skip`, `bias`, as in the reference. The filter is a constant.
    """

    splits: ClassVar[tuple[int, ...]] = (1,)
    image_sizes: ClassVar[tuple[int, ...]] = (8, 16, 32, 64, 128, 256, 512, 1024)
    grouped_by: ClassVar[str] = "group_size"

    def __init__(
        self,
        *,
        channel_base: Annotated[int, Constraint(gt=0, le=2**20)] = 32_768,
        channel_max: Annotated[int, Constraint(gt=0, le=4_096)] = 512,
        group_size: SmallCount = 4,
        img_resolution: int,
        img_channels: int,
        classes: int = 0,
        seed: int,
    ) -> None:
        """Draw the weights.

        Args:
            channel_base: Channels times pixels of a side: a block at 16 pixels has 2,048 channels, within
                `channel_max`.
            channel_max: Most channels of a block.
            group_size: Images of a call whose standard deviation is one feature (4 in the reference; 32 in
                StyleGAN2-ADA's setting for CIFAR-10, whose architecture is another one). A call has a multiple of it,
                or fewer images.
            img_resolution: Size of the images, one of `image_sizes`.
            img_channels: C.
            classes: Number of classes; 0 for an unconditional discriminator.
            seed: Seed of the weights.

        Raises:
            ValueError: The images have another size.
        """
        super().__init__()
        if img_resolution not in self.image_sizes:
            raise ValueError(f"images: got {img_resolution} pixels, expected one of {self.image_sizes}")
        self.group_size, self.classes, self.img_channels = group_size, classes, img_channels
        self.sizes = tuple(img_resolution >> level for level in range((img_resolution // _END).bit_length() - 1))
        widths = {size: max(1, min(channel_base // size, channel_max)) for size in (*self.sizes, _END)}
        with seeded(seed):
            for size in self.sizes:
                first = img_channels if size == img_resolution else 0
                self.add_module(f"b{size}", _Block(first, widths[size], widths[size // 2]))
            if classes:
                self.mapping = _Mapping(classes, widths[_END])
            self.b4 = _Epilogue(widths[_END], out=widths[_END] if classes else 1)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits [B, 1] of images [B, C, H, W] in [-1, 1]; `condition` is one-hot [B, K]; high means real."""
        return self.heads(self.frozen_features(images), condition)

    def frozen_features(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return the images: nothing is frozen."""
        return ((images,),)

    def heads(self, features: Sequence[Sequence[Tensor]], condition: Tensor | None = None) -> Tensor:
        """Return logits [B, 1] of the images; rows interact in the minibatch standard deviation.

        Raises:
            ValueError: The images have another shape, do not divide into groups, or have no condition.
        """
        ((images,),) = features
        shape = (self.img_channels, self.sizes[0], self.sizes[0])
        if images.shape[1:] != shape:
            raise ValueError(f"images: got {list(images.shape[1:])}, expected {list(shape)}")
        if self.classes and condition is None:
            raise ValueError(f"condition: got none, expected one-hot [B, {self.classes}] for this discriminator")
        if (rows := len(images)) % min(self.group_size, rows):
            expected = f"a multiple of group_size ({self.group_size}), or fewer"
            raise ValueError(f"group_size: got {rows} images of a process at once, expected {expected}")
        maps: Tensor | None = None
        for size in self.sizes:
            maps = self.get_submodule(f"b{size}")(images if maps is None else maps)
        assert maps is not None
        vectors = self.b4(_with_deviation(maps, group=min(self.group_size, len(images))))
        if not self.classes:
            return vectors
        with half_products(images.device, enabled=False):
            mapped = self.mapping(condition)
        return (vectors * mapped).sum(dim=1, keepdim=True) / math.sqrt(mapped.shape[1])

    def execution_view(self, *, bfloat16: bool, compiled: Compiler, is_constant: bool = True) -> ExecutionView:
        """Return the discriminator as first-order phases call it: see `onestep.networks.execution_view`.

        `is_constant` has no effect: all weights are trained.
        """

        def half(features: Sequence[Sequence[Tensor]], condition: Tensor | None = None) -> Tensor:
            with half_products(features[0][0].device):
                return self.heads(features, condition).float()

        heads = compiled(half if bfloat16 else self.heads)
        return ExecutionView(splits=self.splits, frozen_features=self.frozen_features, heads=heads)


class _Block(nn.Module):
    """Two 3x3 convolutions, the second at half the size, beside a 1x1 convolution; the first block takes an image.

    Attributes:
        recompute: Whether the backward pass computes the block's activations again, from its input.
    """

    recompute = False

    def __init__(self, img_channels: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.fromrgb = _Convolution(img_channels, channels_in, kernel=1) if img_channels else None
        self.conv0 = _Convolution(channels_in, channels_in, kernel=3)
        self.conv1 = _Convolution(channels_in, channels_out, kernel=3, halves=True)
        self.skip = _Convolution(channels_in, channels_out, kernel=1, halves=True, activated=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps [B, out, H/2, W/2] of maps [B, in, H, W], or of images."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, maps, use_reentrant=False, preserve_rng_state=False)
        return self._run(maps)

    def _run(self, maps: Tensor) -> Tensor:
        if self.fromrgb is not None:
            maps = self.fromrgb(maps)
        # Half the variance of each branch, so that their sum keeps it.
        return (self.conv1(self.conv0(maps)) + self.skip(maps)) * math.sqrt(0.5)


class _Convolution(nn.Module):
    """A convolution with equalized learning rate (arXiv:1710.10196, section 4.1), then LeakyReLU.

    One that halves the size filters before; one without activation has no bias.
    """

    filter: Tensor

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int, halves: bool = False, activated: bool = True
    ) -> None:
        super().__init__()
        self.gain, self.padding, self.halves = 1 / math.sqrt(channels_in * kernel**2), kernel // 2, halves
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if activated else None
        taps = torch.tensor(_FILTER)
        self.register_buffer("filter", torch.outer(taps, taps) / taps.sum() ** 2, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps [B, out, H, W], or of half the size."""
        weight = self.weight * self.gain
        if not self.halves:
            maps = F.conv2d(maps, weight, self.bias, padding=self.padding)
        elif self.padding:
            maps = F.conv2d(self._filtered(maps, stride=1), weight, self.bias, stride=2)
        else:  # of one pixel: the same with fewer pixels to filter
            maps = F.conv2d(self._filtered(maps, stride=2), weight, self.bias)
        return maps if self.bias is None else _activated(maps)

    def _filtered(self, maps: Tensor, *, stride: int) -> Tensor:
        channels = maps.shape[1]
        filters = self.filter.to(maps.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(maps, filters, stride=stride, padding=self.padding + 1, groups=channels)


class _Linear(nn.Module):
    """A fully connected layer with equalized learning rate times `rate`, by default followed by LeakyReLU."""

    def __init__(self, width_in: int, width_out: int, *, rate: float = 1.0, activated: bool = True) -> None:
        super().__init__()
        self.gain, self.rate, self.activated = rate / math.sqrt(width_in), rate, activated
        self.weight = nn.Parameter(torch.randn(width_out, width_in) / rate)
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return vectors [B, out]."""
        vectors = F.linear(vectors, self.weight * self.gain, self.bias * self.rate)
        return _activated(vectors) if self.activated else vectors


class _Mapping(nn.Module):
    """From one-hot classes [B, K] to vectors [B, width]."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embed = _Linear(classes, width, activated=False)
        for index in range(_DEPTH):
            self.add_module(f"fc{index}", _Linear(width, width, rate=_RATE))

    def forward(self, condition: Tensor) -> Tensor:
        """Return the mapped classes."""
        vectors = self.embed(condition)
        vectors = vectors * (vectors.square().mean(dim=1, keepdim=True) + _EPSILON).rsqrt()
        for index in range(_DEPTH):
            vectors = self.get_submodule(f"fc{index}")(vectors)
        return vectors


class _Epilogue(nn.Module):
    """From maps at 4x4 pixels and their deviation to `out` numbers for an image."""

    def __init__(self, channels: int, *, out: int) -> None:
        super().__init__()
        self.conv = _Convolution(channels + 1, channels, kernel=3)
        self.fc = _Linear(channels * _END**2, channels)
        self.out = _Linear(channels, out, activated=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return vectors [B, out] of maps [B, channels + 1, 4, 4]."""
        return self.out(self.fc(self.conv(maps).flatten(1)))


def _with_deviation(maps: Tensor, *, group: int) -> Tensor:
    """Add a map: the standard deviation over each group of `group` images, mean over channels and pixels.

    Group number j has images j, j + n, ..., of n groups. These are the groups of all processes together, whose images
    alternate, too (arXiv:1710.10196, section 3).
    """
    rows, channels, height, width = maps.shape
    groups = maps.float().reshape(group, rows // group, channels, height, width)
    variance = (groups - groups.mean(dim=0)).square().mean(dim=0)
    deviation = (variance + _EPSILON).sqrt().mean(dim=(1, 2, 3))
    plane = deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([maps, plane.to(maps.dtype)], dim=1)


def _activated(values: Tensor) -> Tensor:
    return F.leaky_relu(values, _SLOPE) * math.sqrt(2)
