"""Moves along the probability flow ODE between noise levels, and the targets of instance losses that they give.

Source: the losses in github.com/Zyriix/D2O with which its paper compares (arXiv:2405.20750, figure 4): `cd` consistency
distillation (arXiv:2303.01469), `ctm` consistency trajectories (arXiv:2310.02279), `pd` progressive distillation
(arXiv:2202.00512) and `rcd`, consistency from the highest level. Each makes two moves, from a level t by a level u to a
level s. Legend: B images, C H W an image; a level is an index of a grid of N steps, 0 for the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from onestep.augmentations import RowNumbers

Kind: TypeAlias = Literal["cd", "ctm", "pd", "rcd"]

Student: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`(noisy, sigma, next sigma, condition)` to denoised images; a network with one noise level ignores the next one."""

Teacher: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(noisy, sigma, condition)` to denoised images."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """EDM's noise levels (arXiv:2206.00364, eq. 5), from index 0 for `sigma_min` to index N for `sigma_max`."""

    steps: int
    sigma_max: float = 80.0
    sigma_min: float = 0.002  # where D2O's law makes a denoiser the identity
    rho: float = 7.0

    def sigma(self, index: Tensor) -> Tensor:
        """Return the noise levels of indices [B], which may lie between whole ones; float32 numbers in float64.

        Networks take noise levels in float32, so the arithmetic on levels uses the same numbers.
        """
        lowest, highest = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((highest + (1 - index.float() / self.steps) * (lowest - highest)) ** self.rho).double()


class Levels(NamedTuple):
    """The indices of two moves, from `t` by `u` to `s`: float64 [B]."""

    t: Tensor
    u: Tensor
    s: Tensor


def drawn_levels(kind: Kind, *, steps: int, random: RowNumbers) -> Levels:
    """Draw the levels of each image on a grid of N `steps`, at least 2; `pd` needs a power of two.

    cd: t in 2..N, u = t - 1, s = 0. ctm: the same t, u in 1..t-1, s in 0..u-1. rcd: t = N, s in 0..N-2, u = s + 1.
    pd: m = 2^i with i in 0..log2(N)-1, an interval of m equal ones, and u its middle.
    """
    return levels_of(kind, steps=steps, uniform=random.uniform)


def levels_of(kind: Kind, *, steps: int, uniform: Callable[[], Tensor]) -> Levels:
    """Return the same of numbers in [0, 1) [B] that each call of `uniform` draws."""
    if kind == "rcd":
        s = _whole(uniform(), 0, steps - 2)
        return Levels(torch.full_like(s, steps), s + 1, s)
    if kind == "pd":
        intervals = 2 ** _whole(uniform(), 0, math.floor(math.log2(steps)) - 1)
        end = _whole(uniform(), 1, intervals)
        width = steps / intervals
        return Levels(end * width, (end - 0.5) * width, (end - 1) * width)
    t = _whole(uniform(), 2, steps)
    if kind == "cd":
        return Levels(t, t - 1, torch.zeros_like(t))
    u = _whole(uniform(), 1, t - 1)
    return Levels(t, u, _whole(uniform(), 0, u - 1))


def shares(kind: Kind, *, steps: int, draws: int = 100_000) -> tuple[int, float, float]:
    """Return the number of moves of each image, and how many of them are Heun's steps and Euler's steps in the mean."""
    random = torch.Generator().manual_seed(0)
    levels = levels_of(kind, steps=steps, uniform=lambda: torch.rand(draws, generator=random, dtype=torch.float64))
    moves = [(levels.t, levels.u), (levels.u, levels.s)]
    moves += [(levels.s, torch.zeros_like(levels.s))] if kind == "ctm" else []
    lengths = torch.stack([start - end for start, end in moves])
    heun, euler = (float(each.double().sum(dim=0).mean()) for each in (lengths == 1, lengths > 1))
    return len(moves), heun, euler


def _whole(uniform: Tensor, lowest: Tensor | int, highest: Tensor | int) -> Tensor:
    """Return whole numbers in lowest..highest of numbers in [0, 1), with the reference's rounding; float64 [B]."""
    return (uniform.double() * (highest - lowest + 0.9998) + lowest - 0.4999).round()


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Moves on a grid with the denoisers that give their directions.

    Attributes:
        condition: Of the images; None for an unconditional run.
    """

    grid: Grid
    student: Student
    teacher: Teacher
    condition: Tensor | None = None

    def target(self, kind: Kind, noisy: Tensor, levels: Levels) -> Tensor:
        """Return what the student should predict at level t of images [B, C, H, W] with that noise; float64.

        The arithmetic is float64: `pd` and `rcd` divide a difference of images by an interval of noise levels, which
        is 7e-4 at N = 1024, and the images of the moves differ by as little.
        """
        moved = self.move(self.move(noisy, levels.t, levels.u), levels.u, levels.s)
        if kind == "cd":
            return moved
        if kind == "ctm":
            return self.move(moved, levels.s, torch.zeros_like(levels.s))
        # Images on the line from `noisy` to `moved`, where it reaches sigma 0.
        above, below = (_column(self.grid.sigma(index)) for index in (levels.t, levels.s))
        return noisy + above * (moved - noisy) / (above - below)

    def move(self, noisy: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Return images moved from the level `start` to the level `end` [B], float64.

        Between neighbours by the teacher's Heun step, and by the student's Euler step otherwise. Each network gets only
        the images that need it. Differs from the reference: it computes both steps of all images.
        """
        noisy, neighbours = noisy.double(), start - end == 1
        above, below = self.grid.sigma(start), self.grid.sigma(end)
        if neighbours.is_meta:  # without values: the most that a batch may need
            heun, euler = (step(noisy, above, below, self.condition) for step in (self.heun, self.euler))
            return torch.where(_column(neighbours), heun, euler)
        moved = noisy.clone()
        for rows, step in ((neighbours, self.heun), ((start > end) & ~neighbours, self.euler)):
            if bool(rows.any()):
                condition = None if self.condition is None else self.condition[rows]
                moved[rows] = step(noisy[rows], above[rows], below[rows], condition)
        return moved

    def euler(self, noisy: Tensor, above: Tensor, below: Tensor, condition: Tensor | None) -> Tensor:
        """Return images moved from sigma `above` to `below` [B] on the line to what the student estimates."""
        denoised = self.student(noisy, above.float(), below.float(), condition)
        return noisy + _column((above - below) / above) * (denoised - noisy)

    def heun(self, noisy: Tensor, above: Tensor, below: Tensor, condition: Tensor | None) -> Tensor:
        """Return images moved likewise by Heun's step with the teacher (arXiv:2206.00364, algorithm 1)."""
        first = (self.teacher(noisy, above.float(), condition) - noisy) / _column(above)
        moved = noisy + _column(above - below) * first
        second = (self.teacher(moved, below.float(), condition) - moved) / _column(below)
        return noisy + _column(above - below) * (first + second) / 2


def _column(values: Tensor) -> Tensor:
    """Return numbers [B] in the shape [B, 1, 1, 1]."""
    return values[:, None, None, None]
