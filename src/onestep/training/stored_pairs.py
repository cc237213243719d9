"""Pairs of noise and image from files of the stage `sample`: the noise is drawn again from the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from onestep.archive import read_arrays
from onestep.autoencoders import Codec
from onestep.config.constraints import seeds_of
from onestep.config.run import Run
from onestep.sampling import per_seed_noise

_ABOUT = {"subject": {"model": str, "sampler": str, "seeds": str}, "sampler": dict}

_ARRAYS = ("pixels", "labels", "seeds")


class Pair(NamedTuple):
    """Noise and images [B, C, H, W], float32, and the condition of the images [B, K]; None without classes."""

    noise: Tensor
    images: Tensor
    condition: Tensor | None


class StoredPairs(nn.Module):
    """Pairs as a frozen network, so that a training state has their digest.

    Args:
        pixels: Images, uint8 [N, C, H, W].
        labels: Their classes, int64 [N].
        seeds: Of their noise, N of them.
        classes: K; 0 without a condition.
        codec: From pixels to the space of the network.
        shape: C, H and W of the noise.
    """

    pixels: Tensor
    labels: Tensor
    seeds: Tensor

    def __init__(
        self,
        *,
        pixels: Tensor,
        labels: Tensor,
        seeds: Sequence[int],
        classes: int,
        codec: Codec,
        shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.register_buffer("pixels", pixels)
        self.register_buffer("labels", labels)
        self.register_buffer("seeds", torch.tensor(seeds))  # for the digest
        self._seeds, self._classes, self._codec, self._shape = seeds, classes, codec, shape

    def forward(self, uniform: Tensor) -> Pair:
        """Return the pairs of numbers in [0, 1) [B], each of which chooses one of N."""
        chosen = (uniform.double() * len(self._seeds)).long()
        condition = None
        if self._classes:
            condition = (self.labels[chosen, None] == torch.arange(self._classes, device=chosen.device)).float()
        if chosen.is_meta:  # without values: the memory of a batch alone
            noise = torch.empty((len(chosen), *self._shape), device=chosen.device)
        else:
            noise = per_seed_noise([self._seeds[index] for index in chosen.tolist()], self._shape).to(uniform.device)
        return Pair(noise, self._codec.encode(self.pixels[chosen]), condition)

    def execution_view(self, **_: Any) -> StoredPairs:
        """Return this module: there is nothing to compile."""
        return self


def stored_pairs(
    files: Sequence[Path], *, run: Run, classes: int, codec: Codec, shape: tuple[int, int, int]
) -> StoredPairs:
    """Read the files of a run's `pairs`, in the order of its blocks of seeds.

    Args:
        files: One for each block.
        run: The run, with `pairs`.
        classes: K of the run's networks; 0 for an unconditional run.
        codec: That of the run.
        shape: C, H and W of the run's networks.

    Raises:
        ValueError: A file is damaged, is not of the run's teacher, sampler and seeds, has images of another shape or
            classes, or is of a sampler that adds noise.
    """
    assert run.pairs is not None
    if len(files) != len(run.pairs.seeds):
        raise ValueError(f"pairs: got {len(files)} files, expected {len(run.pairs.seeds)}, one for each block of seeds")
    parts = [
        _block(path, seeds, run=run, classes=classes, codec=codec, shape=shape)
        for path, seeds in zip(files, run.pairs.seeds, strict=True)
    ]
    pixels, labels, seeds = (np.concatenate(each) for each in zip(*parts, strict=True))
    return StoredPairs(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        labels=torch.from_numpy(labels),
        seeds=seeds.tolist(),
        classes=classes,
        codec=codec,
        shape=shape,
    )


def _block(
    path: Path, block: str, *, run: Run, classes: int, codec: Codec, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels uint8 [N, H, W, C], labels int64 [N] and seeds int64 [N] of one file."""
    assert run.pairs is not None
    arrays, about = read_arrays(path, _ARRAYS, about=_ABOUT)
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise ValueError(f"{path}: got no {missing[0]}, expected the images of a sampler. Fix: delete it and run again")
    wanted = {"model": run.pairs.teacher or run.teacher, "sampler": run.pairs.sampler, "seeds": block}
    for key, value in wanted.items():
        if (found := about["subject"][key]) != value:
            raise ValueError(f"{path}: got images of {key} {found}, expected {value}, that of the run's pairs")
    if about["sampler"].get("churn"):
        deterministic = "expected a sampler whose images follow from noise and class alone"
        raise ValueError(f"{path}: got images of a sampler with churn, {deterministic}. Fix: sample with churn: 0")
    pixels, labels, seeds = (arrays[name] for name in _ARRAYS)
    if not np.array_equal(seeds, seeds_of(block)) or not len(pixels) == len(labels) == len(seeds):
        raise ValueError(f"{path}: got {len(pixels)} images, expected one for each seed. Fix: delete it and run again")
    size = tuple(codec.encode(torch.from_numpy(pixels[:1]).permute(0, 3, 1, 2)).shape[1:])
    if size != shape:
        raise ValueError(f"{path}: got images of [C, H, W] {list(size)}, expected {list(shape)}, those of the run")
    if classes and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"{path}: got classes {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    if not classes and labels.max() >= 0:
        raise ValueError(f"{path}: got images of a conditional teacher, expected one for conditional: false")
    return pixels, labels.astype(np.int64), seeds.astype(np.int64)
