"""Random streams of training rows, keyed by the row's place in the run: the same for any number of ranks."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class CountedRows:
    """A `RowRandom`: row n of the run owns the Philox stream (seed, phase, n), wherever it is computed.

    Nothing needs saving on resume: the stream follows from the number of images seen.
    Differs from the reference: there each rank draws from its own global generator, so results depend on the ranks.
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
