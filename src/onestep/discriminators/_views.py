"""A discriminator as a phase sees it that takes first derivatives alone: in half precision, compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onestep.discriminators import Discriminator


@dataclass(frozen=True, kw_only=True)
class View:
    """A `Discriminator` by its functions; what they compute with belongs to another one.

    Attributes:
        splits: See `Discriminator`; likewise the others.
        features: See there.
        judge: See there.
    """

    splits: tuple[int, ...]
    features: Callable[[Tensor], tuple[tuple[Tensor, ...], ...]]
    judge: Callable[[Sequence[Sequence[Tensor]], Tensor | None], Tensor]

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W] under labels, one-hot [B, K] or None."""
        return self.judge(self.features(images), labels)


def view_of(
    discriminator: Discriminator, *, half: bool, compiled: Callable[[Callable], Callable] = lambda function: function
) -> View:
    """Return a view of a discriminator.

    Args:
        discriminator: In its final state, as far as it is frozen.
        half: Whether convolutions and products of matrices are taken in bfloat16 (torch's autocast; what it keeps in
            single precision, and the spectral norm, stay). Logits are float32. Frozen weights are cast once.
        compiled: Turns the frozen features into a quicker function. The heads stay as they are: each judgement moves
            their buffers in place, and a compiled one would save them for its backward pass, which comes after the
            next judgement.
    """
    if not half:
        return View(splits=discriminator.splits, features=compiled(discriminator.features), judge=discriminator.judge)
    frozen = cast_once(discriminator)

    def features(images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return frozen.features(images)

    def judge(maps: Sequence[Sequence[Tensor]], labels: Tensor | None) -> Tensor:
        with torch.autocast(maps[0][0].device.type, dtype=torch.bfloat16):
            return discriminator.judge(maps, labels).float()

    return View(splits=discriminator.splits, features=compiled(features), judge=judge)


def cast_once(discriminator: nn.Module) -> nn.Module:
    """Return a copy whose frozen convolutions and matrices are bfloat16; autocast would cast them at each forward."""
    twin = copy.deepcopy(discriminator)
    for part in twin.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            for name, value in list(part.named_buffers(recurse=False)):
                setattr(part, name, value.to(torch.bfloat16))
    return twin
