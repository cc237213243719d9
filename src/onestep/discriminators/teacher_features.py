"""A discriminator of noisy images: small trained heads on inner maps of the run's frozen teacher.

Latent adversarial diffusion distillation, LADD (arXiv:2403.12015), on images. The heads are those of DMD2
(arXiv:2405.14867) for maps of 8x8, as NVlabs/FastGen generalizes them; the authors of LADD have published no code.
Objective `d2o` with it is LADD: the discriminator has seen no images or classes but those of the teacher.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from onestep.augmentations import RowNumbers
from onestep.chain import RHO, SIGMA_MIN
from onestep.config.constraints import Constraint, Share
from onestep.discriminators import Compiler, ExecutionView, seeded, wrap_for_execution

__all__ = ["TeacherFeatures"]

_SIGMA_MAX = 80.0  # of the grid of noise levels, EDM's
_MOST = 8  # size of a map from which one more halving leaves the last convolution's

_Level = Annotated[int, Constraint(ge=0, le=11)]
_Levels = Annotated[tuple[_Level, ...], Constraint(min_length=1, max_length=12)]
_Part = Annotated[tuple[Share, ...], Constraint(min_length=2, max_length=2)]


class TeacherFeatures(nn.Module):
    """Heads on the encoder's maps of images with noise; one logit of each head, of which a loss is the mean.

    An image gets noise of a level that is drawn for it, and the teacher its level and its condition. `prepared` draws,
    with the random streams of the batch, and packs images, levels and conditions into one tensor: images [B, C, H, W]
    and as many further channels as 1 + K numbers need. In a penalty, noisy images are differentiated.

    Without a teacher it is heads alone, for objectives that have maps of their own, such as `dmd2`.

    State dict: `discriminators.{i}.{j}.weight` and `.bias` of the heads, from the finest map on; not the teacher, which
    is an input of the run.

    Attributes:
        splits: The number of heads.
        levels: Indices of their maps.
    """

    def __init__(
        self,
        *,
        levels: _Levels | None = None,
        grid: _Part | None = (0.02, 0.98),
        same_noise: bool = False,
        teacher: nn.Module | None = None,
        map_shapes: Sequence[tuple[int, int]],
        img_channels: int,
        classes: int = 0,
        seed: int,
    ) -> None:
        """Draw the heads.

        Args:
            levels: Which maps of the encoder, 0 for the finest, of full resolution; by default the coarsest.
            grid: Part of EDM's grid of noise levels from which that of each image is drawn, by positions from 0 (0.002)
                to 1 (80), uniformly; by default that of DMD2's scores. None is no noise, and the lowest level.
            same_noise: Whether generated and real images that are compared have the same level and noise.
            teacher: The frozen denoiser; None for heads alone.
            map_shapes: Channels and size of each map of the encoder (`onestep.networks.Network`).
            img_channels: C.
            classes: K; 0 for an unconditional teacher.
            seed: Seed of the heads.

        Raises:
            ValueError: There is no such map, a map is named twice, or the grid is not two positions, the lower first.
        """
        super().__init__()
        chosen = (len(map_shapes) - 1,) if levels is None else tuple(sorted(levels))
        if len(set(chosen)) < len(chosen) or chosen[-1] >= len(map_shapes):
            raise ValueError(f"levels: got {list(chosen)}, expected some of 0 to {len(map_shapes) - 1}, each once")
        if grid is not None and not grid[0] < grid[1]:
            raise ValueError(f"grid: got {list(grid)}, expected two positions, the lower one first")
        self.levels, self.grid, self.same_noise = chosen, grid, same_noise
        self.img_channels, self.classes = img_channels, classes
        self.splits: tuple[int, ...] = (len(chosen),)
        self.teacher = teacher
        with seeded(seed):
            self.discriminators = nn.ModuleList(_head(*map_shapes[level]) for level in chosen)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of `prepared` images; high means real; the condition is theirs."""
        return self.heads(self.frozen_features(images), condition)

    def prepared(self, images: Tensor, *, random: RowNumbers, condition: Tensor | None) -> Tensor:
        """Return images [n B, C, H, W] with noise, their levels and their conditions: [n B, C + P, H, W].

        Each of the n sets has draws of its own, or those of the first one with `same_noise`.
        """
        if self.grid is None:
            sigma = images.new_full((len(images),), SIGMA_MIN)
            sets = 1 if condition is None else len(images) // len(condition)
            return _packed(images, sigma, condition if condition is None else condition.repeat(sets, 1))
        packed: list[Tensor] = []
        sigma, noise = self._drawn(images, random)
        for index, each in enumerate(images.split(len(sigma))):
            if index and not self.same_noise:
                sigma, noise = self._drawn(images, random)
            packed.append(_packed(each + sigma[:, None, None, None] * noise, sigma, condition))
        return torch.cat(packed)

    def _drawn(self, images: Tensor, random: RowNumbers) -> tuple[Tensor, Tensor]:
        """Return noise levels [B] and noise [B, C, H, W]."""
        assert self.grid is not None
        low, high = self.grid
        ends = SIGMA_MIN ** (1 / RHO), _SIGMA_MAX ** (1 / RHO)
        position = low + (high - low) * random.uniform()
        return (ends[0] + position * (ends[1] - ends[0])) ** RHO, random.normal(*images.shape[1:])

    def frozen_features(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return the teacher's map [B, C', H', W'] for each head, of `prepared` images.

        Images as they are, [B, C, H, W], are those of the lowest level, without a condition.
        """
        assert self.teacher is not None, "heads alone have no frozen part"
        numbers = images[:, self.img_channels :].detach().flatten(1)
        sigma, condition = images.new_full((len(images),), SIGMA_MIN), None
        if numbers.shape[1]:
            sigma, condition = numbers[:, 0], numbers[:, 1 : 1 + self.classes] if self.classes else None
        # The other kernels of a GPU have no second derivative, which penalties need.
        with sdpa_kernel(SDPBackend.MATH) if images.requires_grad else contextlib.nullcontext():
            maps = self.teacher(images[:, : self.img_channels], sigma, condition, force_fp32=True, maps="only")
        return self.chosen(maps)

    def chosen(self, maps: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
        """Return those of all maps of an encoder that the heads take."""
        return tuple((maps[level],) for level in self.levels)

    def heads(self, features: Sequence[Sequence[Tensor]], condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of maps, which have the condition in them; rows do not interact."""
        pairs = zip(self.discriminators, features, strict=True)
        return torch.cat([head(one).mean(dim=(2, 3)) for head, (one,) in pairs], dim=1)

    def execution_view(self, *, bfloat16: bool, compiled: Compiler, is_constant: bool = True) -> ExecutionView:
        """Return the discriminator as first-order phases call it: see `onestep.networks.execution_view`.

        `is_constant` has no effect: the frozen part is always constant.
        """
        return wrap_for_execution(self, bfloat16=bfloat16, compiled=compiled)

    def train(self, mode: bool = True) -> TeacherFeatures:
        """Set the heads to training (or evaluation) mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self


def _packed(images: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
    """Return images [B, C, H, W] with further channels that hold sigma [B] and conditions [B, K], then zeros."""
    numbers = sigma[:, None] if condition is None else torch.cat([sigma[:, None], condition], dim=1)
    rows, _, height, width = images.shape
    channels = -(-numbers.shape[1] // (height * width))
    padded = F.pad(numbers.to(images.dtype), (0, channels * height * width - numbers.shape[1]))
    return torch.cat([images, padded.reshape(rows, channels, height, width)], dim=1)


def _head(channels: int, size: int) -> nn.Sequential:
    """Return the head of a map [B, channels, size, size]: halvings, a convolution of what is left, one number."""
    layers: list[nn.Module] = []
    halvings = 1
    while size >> (halvings - 1) > _MOST:
        halvings += 1
    for _ in range(halvings if size > 1 else 0):
        layers += [nn.Conv2d(channels, channels, 4, stride=2, padding=1), _norm(channels), nn.SiLU()]
        size //= 2
    kernel = min(size, 4)
    layers += [nn.Conv2d(channels, channels, kernel, stride=kernel), _norm(channels), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))


def _norm(channels: int) -> nn.GroupNorm:
    """Return a normalisation of groups of 4 channels, up to 32 channels; else of the most groups, at most 32."""
    most = max(channels // 4, 1) if channels <= 32 else 32
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)
