"""The images of one step, split into micro-batches, with a random stream per image."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from onestep.objectives import Batch


class CountedRows:
    """A `RowRandom`: image n of the run has the Philox stream (seed, phase, n) on whichever rank.

    The stream follows from the number of images seen, so it is not part of the state.
    Differs from the reference: there each rank draws from its own global generator, so results depend on their number.
    """

    def __init__(self, *, seed: int, phase: str, rows: Sequence[int], device: torch.device) -> None:
        key = np.array([seed, zlib.crc32(phase.encode())], dtype=np.uint64)
        self._streams = [
            np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, row, 0], dtype=np.uint64)))
            for row in rows
        ]
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        """Return new standard normal numbers, float32 [B, *shape]."""
        numbers = np.empty((len(self._streams), *shape), dtype=np.float32)
        for row, stream in enumerate(self._streams):
            numbers[row] = stream.standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(numbers).to(self._device)

    def uniform(self, *shape: int) -> Tensor:
        """Return new uniform numbers in [0, 1), float32 [B, *shape]."""
        numbers = np.empty((len(self._streams), *shape), dtype=np.float32)
        for row, stream in enumerate(self._streams):
            numbers[row] = stream.random(shape, dtype=np.float32)
        return torch.from_numpy(numbers).to(self._device)


@dataclass(frozen=True, kw_only=True)
class StepData:
    """This rank's images of one step.

    Attributes:
        images: float32 [B, C, H, W].
        condition: Of these images, or None.
        rows: Number of each image in the run.
        seed: Seed of the run.
        images_seen: Images used before this step, over all ranks.
        controls: Current values of the controlled parameters.
        micro_batch: Largest number of images that pass through the networks at once; None for all.
    """

    images: Tensor
    condition: Tensor | None
    rows: Sequence[int]
    seed: int
    images_seen: int
    controls: Mapping[str, float] = field(default_factory=dict)
    micro_batch: int | None = None

    def batches(self, phase: str) -> list[Batch]:
        """Return the micro-batches of a phase, each with fresh random streams."""
        return [
            Batch(
                images=self.images[part],
                condition=None if self.condition is None else self.condition[part],
                random=CountedRows(seed=self.seed, phase=phase, rows=self.rows[part], device=self.images.device),
                images_seen=self.images_seen,
                controls=self.controls,
            )
            for part in micro_batches(len(self.rows), limit=self.micro_batch)
        ]


def micro_batches(rows: int, *, limit: int | None) -> list[slice]:
    """Return the fewest slices of `rows` images with at most `limit` each, of nearly equal size."""
    count = 1 if limit is None else -(-rows // limit)
    return [slice(*edges) for edges in pairwise(rows * part // count for part in range(count + 1))]
