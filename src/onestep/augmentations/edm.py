"""The augmentation pipe of EDM's pre-training, with labels for the denoiser (arXiv:2206.00364, appendix F.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from onestep.augmentations import Augmented, Source, _geometry, _pipe
from onestep.augmentations._pipe import Change, Draws, Operation, augment, chances, check, hue, rotate

__all__ = ["Edm"]

_PixelOperation = Callable[[Tensor, Draws, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Edm:
    """Flip, rotate, shift, stretch and recolour images; labels describe it, so that samples are free of it.

    Flips, quarter turns and whole-pixel shifts come first and move pixels exactly. The other moves are one affine map,
    applied to every image, also where it is the identity (to 4e-6). Labels are 0 where nothing changes. Columns in
    order of the operations: xflip, yflip 0 or 1; rotate_int two bits; translate_int x and y as shares of the largest
    shift; scale; rotate_frac cos - 1 and sin; aniso w cos(r) and w sin(r), stretched by w in direction r;
    translate_frac x and y; brightness; contrast; lumaflip 0 or 1; hue cos - 1 and sin; saturation. All others are
    standard normal.

    Attributes:
        probability: Of each operation, before its multiplier; 0.12 in EDM's runs, 0.15 for FFHQ and AFHQv2.
        operations: Multiplier of the probability by name. EDM's runs have xflip 1e8 (always) and yflip, scale,
            rotate_frac, aniso and translate_frac 1: 9 labels. With rotate_int, translate_int, brightness, contrast,
            lumaflip, hue and saturation there are 19 labels.
    """

    probability: float
    operations: Mapping[str, float]

    def __post_init__(self) -> None:
        check(self.probability, self.operations, known=[name for name, _ in (*_PIXEL_MOVES, *_MOVES, *_TINTS)])

    def __call__(self, images: Tensor, *, generator: Source) -> Augmented:
        """Augment images [B, C, H, W] in [-1, 1].

        ValueError: colours change and C is neither 3 nor 1, or quarter turns apply and images are not square.
        """
        draws, likely = Draws(images, source=generator), chances(self.probability, self.operations)
        labels = []
        for name, operation in _PIXEL_MOVES:
            if name in likely:
                images, label = operation(images, draws, likely[name])
                labels.append(label)
        return augment(images, draws, likely, moves=_MOVES, tints=_TINTS, labels=labels)


def _whole(draws: Draws, chance: float, *, below: int) -> Tensor:
    """Return integers in [0, below) [B], 0 for unchanged images."""
    return draws.sometimes(chance, draws.integers(low=0, high=below))


def _flip(images: Tensor, draws: Draws, chance: float, *, dim: int) -> tuple[Tensor, Tensor]:
    flipped = _whole(draws, chance, below=2)
    return _geometry.flip(images, flipped=flipped == 1, dim=dim), flipped[:, None]


def _rotate_int(images: Tensor, draws: Draws, chance: float) -> tuple[Tensor, Tensor]:
    if draws.height != draws.width:
        raise ValueError(f"images of {draws.height}x{draws.width} pixels: rotate_int expects square ones")
    return _geometry.quarter_turns(images, turns=_whole(draws, chance, below=4))


def _translate_int(images: Tensor, draws: Draws, chance: float) -> tuple[Tensor, Tensor]:
    share = draws.sometimes(chance, draws.uniform_pair() * 2 - 1)
    largest = share.new_tensor([[draws.width], [draws.height]]) * _pipe.SHIFT
    right, up = (share * largest).round().long()
    return _geometry.shift(images, right=right, up=up), (torch.stack([right, up]) / largest).T


def _normal(matrix: Callable[[Tensor], Tensor]) -> Operation:
    """Return the operation with the matrix of a standard normal number [B], its label."""

    def draw(draws: Draws, chance: float) -> Change:
        amount = draws.sometimes(chance, draws.normal())
        return Change(matrix=matrix(amount), labels=amount[:, None])

    return draw


def _scaling(amount: Tensor) -> Tensor:
    smaller = 1 / (amount * _pipe.SCALE).exp2()
    return _geometry.plane_scaling(smaller, smaller)


def _aniso(draws: Draws, chance: float) -> Change:
    """Stretch along one direction and squeeze across it; with probability 1/2 that direction is x or y."""
    amount, direction = draws.normal(), (draws.uniform() * 2 - 1) * torch.pi
    amount, direction = draws.sometimes(chance, amount), draws.sometimes(0.5, direction)
    squeeze = _geometry.plane_stretch((-amount * _pipe.STRETCH).exp2())
    matrix = _geometry.plane_rotation(-direction) @ squeeze @ _geometry.plane_rotation(direction)
    return Change(matrix=matrix, labels=torch.stack([amount * direction.cos(), amount * direction.sin()], dim=1))


def _translate_frac(draws: Draws, chance: float) -> Change:
    amount = draws.sometimes(chance, draws.normal_pair())
    shift = amount * amount.new_tensor([[draws.width], [draws.height]]) * _pipe.SHIFT
    return Change(matrix=_geometry.plane_shift(*-shift), labels=amount.T)


def _lumaflip(draws: Draws, chance: float) -> Change:
    flipped = _whole(draws, chance, below=2).float()
    return Change(matrix=_geometry.luma_flip(flipped), labels=flipped[:, None])


_PIXEL_MOVES: tuple[tuple[str, _PixelOperation], ...] = (
    ("xflip", partial(_flip, dim=3)),
    ("yflip", partial(_flip, dim=2)),
    ("rotate_int", _rotate_int),
    ("translate_int", _translate_int),
)
# Functions of torch are called inside lambdas, because a login node without it reads the names below.
_MOVES: tuple[tuple[str, Operation], ...] = (
    ("scale", _normal(_scaling)),
    ("rotate_frac", rotate),
    ("aniso", _aniso),
    ("translate_frac", _translate_frac),
)
_TINTS: tuple[tuple[str, Operation], ...] = (
    ("brightness", _normal(lambda amount: _geometry.colour_shift(amount * _pipe.BRIGHTNESS))),
    ("contrast", _normal(lambda amount: _geometry.colour_scaling((amount * _pipe.CONTRAST).exp2()))),
    ("lumaflip", _lumaflip),
    ("hue", hue),
    ("saturation", _normal(lambda amount: _geometry.saturation((amount * _pipe.SATURATION).exp2()))),
)
