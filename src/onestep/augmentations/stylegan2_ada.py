"""The pipe of StyleGAN2-ADA and its adaptive probability (Karras et al., arXiv:2006.06676), as in D2O's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onestep.augmentations import Augmented, Source, _geometry
from onestep.augmentations._pipe import (
    BRIGHTNESS,
    CONTRAST,
    SATURATION,
    SCALE,
    SHIFT,
    STRETCH,
    Change,
    Draws,
    Operation,
    Table,
    augment,
    chances,
    check,
    hue,
    rotate,
)

__all__ = ["StyleGan2Ada"]


@dataclass(frozen=True, kw_only=True)
class StyleGan2Ada:
    """Flip, rotate, shift, stretch and recolour images, against overfitting of the discriminator.

    All moves are one affine map, applied to every image, also where it is the identity (to 4e-6); flips and quarter
    turns blur slightly. Labels, columns in order of the operations: xflip 0 or 1; rotate90 quarter turns; xint x and
    y as shares of the largest shift; scale, a factor; rotate cos - 1 and sin of the first rotation; aniso, a factor;
    rotate cos - 1 and sin of the second; xfrac x and y as shares of the image size; brightness, an amount; contrast,
    a factor; lumaflip 0 or 1; hue cos - 1 and sin; saturation, a factor. Factors are 1 where nothing changes, all
    others 0.

    Attributes:
        probability: Of each operation, before its multiplier.
        operations: Multiplier of the probability by name; in D2O's code 1 for each of xflip, rotate90, xint, scale,
            rotate, aniso, xfrac, brightness, contrast, lumaflip, hue and saturation.
        target: Mean sign of the discriminator's logits of real images, in [-1, 1], that the probability is adapted to;
            it starts at `probability`, see `adapted`. Default: none, a constant probability (arXiv:2006.06676: 0.6).
        interval: Steps between two updates of an adaptive probability.
        ramp_images: Images in which an adaptive probability rises from 0 to 1 if it always rises.
    """

    probability: float
    operations: Mapping[str, float]
    target: float | None = None
    interval: int = 4
    ramp_images: int = 500_000

    def __post_init__(self) -> None:
        check(self.probability, self.operations, known=[name for name, _ in (*_MOVES, *_TINTS)])
        if self.target is not None and not -1 <= self.target <= 1:
            raise ValueError(f"target {self.target}: expected a mean of signs, from -1 to 1")
        for name in ("interval", "ramp_images"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}: expected a positive number")

    def __call__(self, images: Tensor, *, generator: Source) -> Augmented:
        """Augment images [B, C, H, W] in [-1, 1]; all 12 operations have 18 labels.

        ValueError: colours change and C is neither 3 nor 1.
        """
        likely = chances(self.probability, self.operations)
        return augment(images, Draws(images, source=generator), likely, moves=_MOVES, tints=_TINTS)

    def adapted(self, value: float, *, mean: float, images: int) -> float:
        """Return an adaptive probability after one update (section 3.2), from its current value.

        It rises while the discriminator is overconfident on real images, and falls otherwise. It is at least 0 and has
        no upper bound: above 1 it takes as long to fall as it took to rise. `mean` is the mean sign of the
        discriminator's logits of real images since the last update, in [-1, 1], and `images` their number over all
        ranks; D2O's code updates after every 4 batches.
        """
        assert self.target is not None, "a constant probability is never updated"
        direction = (mean > self.target) - (mean < self.target)
        return max(value + direction * images / self.ramp_images, 0.0)


def _whole(draws: Draws, chance: float, *, below: int) -> Tensor:
    """Return integers in [0, below) as float32 [B], 0 for unchanged images."""
    return draws.sometimes(chance, (draws.uniform() * below).floor())


def _factor(matrix: Callable[[Tensor], Tensor], *, spread: float) -> Operation:
    """Return the operation with the matrix of a factor [B], its label, whose log2 has this standard deviation."""

    def draw(draws: Draws, chance: float) -> Change:
        factor = draws.sometimes(chance, (draws.normal() * spread).exp2(), still=1)
        return Change(matrix=matrix(factor), labels=factor[:, None])

    return draw


def _xflip(draws: Draws, chance: float) -> Change:
    flipped = _whole(draws, chance, below=2)
    return Change(matrix=_geometry.plane_scaling(1 - 2 * flipped, torch.ones_like(flipped)), labels=flipped[:, None])


def _rotate90(draws: Draws, chance: float) -> Change:
    turns = _whole(draws, chance, below=4)
    return Change(matrix=_geometry.plane_rotation(turns * (torch.pi / 2)), labels=turns[:, None])


def _xint(draws: Draws, chance: float) -> Change:
    share = draws.sometimes(chance, (draws.uniform(2).T * 2 - 1) * SHIFT)
    sides = share.new_tensor([[draws.width], [draws.height]])
    shift = (share * sides).round()
    return Change(matrix=_geometry.plane_shift(*-shift), labels=(shift / (SHIFT * sides)).T)


def _rotate(draws: Draws, chance: float) -> Change:
    """One of two rotations, before and after the stretch; `chance` is the probability that at least one applies."""
    return rotate(draws, 1 - (1 - min(chance, 1.0)) ** 0.5)


def _xfrac(draws: Draws, chance: float) -> Change:
    share = draws.sometimes(chance, draws.normal(2).T * SHIFT)
    shift = share * share.new_tensor([[draws.width], [draws.height]])
    return Change(matrix=_geometry.plane_shift(*-shift), labels=share.T)


def _brightness(draws: Draws, chance: float) -> Change:
    amount = draws.sometimes(chance, draws.normal() * BRIGHTNESS)
    return Change(matrix=_geometry.colour_shift(amount), labels=amount[:, None])


def _lumaflip(draws: Draws, chance: float) -> Change:
    flipped = _whole(draws, chance, below=2)
    return Change(matrix=_geometry.luma_flip(flipped), labels=flipped[:, None])


# Functions of torch are called inside lambdas, because a login node without it reads the names below.
_MOVES: Table = (
    ("xflip", _xflip),
    ("rotate90", _rotate90),
    ("xint", _xint),
    ("scale", _factor(lambda factor: _geometry.plane_scaling(1 / factor, 1 / factor), spread=SCALE)),
    ("rotate", _rotate),
    ("aniso", _factor(lambda factor: _geometry.plane_stretch(1 / factor), spread=STRETCH)),
    ("rotate", _rotate),
    ("xfrac", _xfrac),
)
_TINTS: Table = (
    ("brightness", _brightness),
    ("contrast", _factor(lambda factor: _geometry.colour_scaling(factor), spread=CONTRAST)),
    ("lumaflip", _lumaflip),
    ("hue", hue),
    ("saturation", _factor(lambda factor: _geometry.saturation(factor), spread=SATURATION)),
)
