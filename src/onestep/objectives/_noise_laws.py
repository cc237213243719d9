"""Noise levels at which the densities of data and generator are compared: laws of the methods nearest to DiffRatio.

Levels are those of images x + sigma n. A schedule of x_t = sqrt(abar_t) x + sqrt(1 - abar_t) s n has the densities of
such images up to a factor, with sigma_t = s sqrt(1 / abar_t - 1). No level is below 0.002, the lowest of EDM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from onestep.augmentations import RowNumbers
from onestep.objectives._moves import Grid

NoiseLaw: TypeAlias = Literal["sid", "dmd2", "diffusion_gan", "diffusion_gan_uniform", "diffusion_gan_cosine", "dikl"]

_Betas: TypeAlias = Callable[[int], list[float]]  # variances of the steps 1..T
_StepLaw: TypeAlias = Callable[[int], list[float]]  # their probabilities

_SHARE = 0.8  # of SiD's grid (arXiv:2404.04057): u ~ U(0, 0.8), up to 24.4
_LEVELS, _INNER = 1_000, (0.02, 0.98)  # DMD2's grid, and the shares between which its indices are (arXiv:2405.14867)
_LEAST = 0.002


def noise_levels(law: NoiseLaw, random: RowNumbers, *, progress: float = 0.0) -> Tensor:
    """Draw sigma [B], float32; `progress` in [0, 1] is that of Diffusion-GAN's schedule."""
    return _LAWS[law](random, progress).float().clamp(min=_LEAST)


def _sid(random: RowNumbers, progress: float) -> Tensor:
    return Grid(steps=1).sigma(_SHARE * random.uniform())


def _dmd2(random: RowNumbers, progress: float) -> Tensor:
    first, last = (round(share * _LEVELS) for share in _INNER)
    index = (first + random.uniform() * (last - first + 1)).floor().clamp(max=last)
    return Grid(steps=_LEVELS - 1).sigma(index)


# Diffusion-GAN (arXiv:2206.02262; github.com/Zhendong-Wang/Diffusion-GAN): least and most steps, variances, noise.
_FEWEST, _MOST = 10, 1_000
_BETAS, _NOISE = (1e-4, 0.02), 0.05
PROGRESSING = ("diffusion_gan", "diffusion_gan_uniform", "diffusion_gan_cosine")
PROGRESS_EVERY, _TARGET, _RAMP = 4, 0.6, 100_000


def steps_at(progress: float, *, fewest: int = _FEWEST, most: int = _MOST) -> int:
    """Return the steps T of Diffusion-GAN's schedule at a progress in [0, 1]."""
    return min(max(fewest + round(progress * (most - fewest)), fewest), most)


def progressed(value: float, *, mean: float, images: int) -> float:
    """Return the progress after an update: it rises while more than 80 % of the data have a positive log ratio.

    `mean` is the mean sign of the log ratios of data since the last update, compared with 0.6; the progress goes from
    0 to 1 in 100,000 images if it always rises. The rule of ADA (arXiv:2006.06676), which Diffusion-GAN adapts.
    """
    direction = (mean > _TARGET) - (mean < _TARGET)
    return min(max(value + direction * images / _RAMP, 0.0), 1.0)


def priorities(steps: int) -> list[float]:
    """Return the probabilities of the steps 1..T of Diffusion-GAN's law, in proportion to 0..T - 1."""
    return [2 * step / (steps * (steps - 1)) for step in range(steps)]


def equal_chances(steps: int) -> list[float]:
    """Return equal probabilities of the steps 1..T."""
    return [1 / steps] * steps


def _diffusion_gan(
    random: RowNumbers, progress: float, *, betas: _Betas | None = None, law: _StepLaw = priorities
) -> Tensor:
    """Half of the images at step 0, whose level is the lowest, the others at a step of the law of steps.

    Differs from the reference: it draws 32 steps at each update of T, and images from these; the law is the same.
    """
    steps = steps_at(progress)
    levels = _NOISE * sigma_of(linear_betas(steps, *_BETAS) if betas is None else betas(steps))
    drawn = 2 * random.uniform().double() - 1  # in [-1, 1)
    ends = torch.tensor(law(steps), dtype=torch.float64, device=drawn.device).cumsum(0)
    step = torch.searchsorted(ends, drawn.clamp(min=0), right=True).clamp(max=steps - 1) + 1
    return torch.where(drawn < 0, 0.0, levels.to(drawn.device)[step])


# DiKL (github.com/jiajunhe98/DiKL): steps and variances of its variance preserving schedule.
_DIKL_STEPS, _DIKL_BETAS = 30, (1e-4, 0.7)


def _dikl(random: RowNumbers, progress: float) -> Tensor:
    """A step t uniform in 1..T - 1, counted from 0, so that the lowest level is that of two variances."""
    drawn = random.uniform()
    step = 1 + (drawn * (_DIKL_STEPS - 1)).floor().clamp(max=_DIKL_STEPS - 2).long()
    return sigma_of(linear_betas(_DIKL_STEPS, *_DIKL_BETAS)).to(drawn.device)[step + 1]


def linear_betas(steps: int, first: float, last: float) -> list[float]:
    """Return variances of `steps` steps that rise linearly from `first` to `last`."""
    return [first + (last - first) * step / max(steps - 1, 1) for step in range(steps)]


def cosine_betas(steps: int) -> list[float]:
    """Return variances whose abar_t falls as cos^2((t / T + 0.008) / 1.008 pi / 2) (arXiv:2102.09672, eq. 17).

    None is above 0.999.
    """
    squares = [math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(steps + 1)]
    return [min(1 - after / before, 0.999) for before, after in pairwise(squares)]


def sigma_of(betas: Sequence[float]) -> Tensor:
    """Return sqrt(1 / abar_t - 1) for t = 0..T, abar_0 = 1 and abar_t = (1 - beta_1) ... (1 - beta_t); float64."""
    remaining, levels = 1.0, [0.0]
    for beta in betas:
        remaining *= 1 - beta
        levels.append(math.sqrt(1 / remaining - 1))
    return torch.tensor(levels, dtype=torch.float64)


_LAWS: Mapping[str, Callable[[RowNumbers, float], Tensor]] = {
    "sid": _sid,
    "dmd2": _dmd2,
    "diffusion_gan": _diffusion_gan,
    "diffusion_gan_uniform": partial(_diffusion_gan, law=equal_chances),
    "diffusion_gan_cosine": partial(_diffusion_gan, betas=cosine_betas),
    "dikl": _dikl,
}
